//! The images of a recipe's guests: which manifest each guest names, and what it offers.

use std::collections::BTreeMap;

use crate::error::{Kind, Result};
use crate::image::manifest::{Manifest, shipped_names};
use crate::recipe::budget::ImageDefaults;
use crate::recipe::diagnostic::{self, nearest};
use crate::recipe::{GuestName, GuestSource, ImageRef, Recipe};

/// The manifest of every guest that is made from an image.
#[derive(Debug, Clone)]
pub struct Images(BTreeMap<GuestName, Manifest>);

impl Images {
    /// Loads the manifests that `recipe` names.
    ///
    /// # Errors
    /// [`Kind::Recipe`] that points at each image that is not there, or into a manifest that is wrong.
    pub fn of(recipe: &Recipe) -> Result<Self> {
        let mut manifests = BTreeMap::new();
        let mut problems = Vec::new();
        for guest in recipe.guests() {
            let GuestSource::Image(image) = &guest.source else { continue };
            let found = match image {
                ImageRef::Shipped(name) => Manifest::shipped(name.as_str()),
                ImageRef::Manifest(path) => Manifest::load(path),
            };
            match (found, image) {
                (Ok(manifest), _) => {
                    manifests.insert(guest.name.value.clone(), manifest);
                }
                (Err(_), ImageRef::Shipped(name)) => {
                    let help = match nearest(name.as_str(), shipped_names()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!(
                            "nestlab ships {}; a path to a manifest works too",
                            shipped_names().collect::<Vec<_>>().join(", ")
                        ),
                    };
                    let message = format!("there is no image called `{name}`");
                    problems.push(recipe.problem_at_source(guest, message).help(help));
                }
                (Err(error), ImageRef::Manifest(_)) if error.kind() == Kind::Io => {
                    problems.push(recipe.problem_at_source(guest, error.message()));
                }
                (Err(error), ImageRef::Manifest(_)) => return Err(error),
            }
        }
        if problems.is_empty() { Ok(Images(manifests)) } else { Err(diagnostic::error(problems)) }
    }

    /// Returns the manifest of `guest`, if it is made from an image.
    pub fn manifest(&self, guest: &GuestName) -> Option<&Manifest> {
        self.0.get(guest)
    }

    /// Returns what each guest's image offers, for [`crate::recipe::budget::derive`].
    pub fn defaults(&self) -> BTreeMap<GuestName, ImageDefaults> {
        self.0.iter().map(|(guest, manifest)| (guest.clone(), manifest.defaults())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::budget::{Resources, derive};
    use crate::recipe::{Cpus, HypervisorKind, Mebibytes, Platform, RecipeOrigin};

    fn recipe(text: &str) -> Recipe {
        let base = camino::Utf8PathBuf::from("/nonexistent");
        let origin = RecipeOrigin::Text { name: "lab.toml".to_owned(), base };
        Recipe::parse(text, origin).unwrap_or_else(|error| panic!("{}", error.report()))
    }

    #[test]
    fn an_image_that_is_not_there_is_told_at_the_line_that_names_it() {
        let error = Images::of(&recipe(
            "schema = 1\nname = \"x\"\n[[guest]]\nname = \"a\"\nimage = \"kicksecure-lxtq\"\n\
             [[guest]]\nname = \"b\"\nparent = \"L0\"\nimage = \"./my.toml\"\n",
        ))
        .expect_err("neither is there");
        assert_eq!(error.kind(), Kind::Recipe);
        let report = error.report();
        for part in ["lab.toml:5:9", "did you mean `kicksecure-lxqt`?", "lab.toml:9:9", "my.toml"] {
            assert!(report.contains(part), "{part} is missing in:\n{report}");
        }
    }

    #[test]
    fn every_shipped_recipe_fits_a_common_machine_with_the_images_that_it_names() {
        for shipped in crate::recipe::shipped() {
            let recipe = shipped.recipe().unwrap_or_else(|error| panic!("{}", error.report()));
            let images = Images::of(&recipe).unwrap_or_else(|error| panic!("{}", error.report()));
            let machine = Resources {
                cores: Cpus::new(4).expect("not zero"),
                memory: Mebibytes::gib(16),
                free_disk: Some(Mebibytes::gib(100)),
                networks: Vec::new(),
                hypervisor: recipe.host.hypervisor.kind().unwrap_or(HypervisorKind::Qemu),
                platform: Platform::Linux,
                host_key: None,
            };
            let budget = derive(&recipe, &machine, &images.defaults())
                .unwrap_or_else(|error| panic!("{}: {}", shipped.name, error.report()));
            assert_eq!(budget.guests.len(), recipe.guests().len());
        }
    }
}
