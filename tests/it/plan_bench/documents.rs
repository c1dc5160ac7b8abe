//! What the documents show is what nestlab reads.

use std::path::Path;

use crate::support::bench::Bench;

/// Returns the TOML blocks of a document.
fn samples(document: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    let text = fs_err::read_to_string(path).expect("the document");
    let blocks = text.split("```toml\n").skip(1);
    blocks.map(|rest| rest.split_once("```").expect("the block ends").0.to_owned()).collect()
}

#[test]
fn the_recipes_in_the_readme_are_right() {
    let bench = Bench::new();
    let recipes = samples("README.md");
    assert!(!recipes.is_empty());
    for text in recipes {
        let recipe = bench.whole_recipe("readme.toml", &text);
        bench.ok(&["check", &recipe, "--cpus", "8", "--memory", "32GiB"]);
    }
}

#[test]
fn the_keys_that_the_images_page_shows_are_a_manifests() {
    let bench = Bench::new();
    let samples = samples("docs/images.md");
    assert!(!samples.is_empty());
    for sample in samples {
        let text = format!(
            "schema = 1\nname = \"sample\"\nversion = \"1\"\narch = \"x86_64\"\nformat = \"raw\"\n\
             urls = [\"http://127.0.0.1/x.raw.xz\"]\n{}\n\
             [openpgp]\nfingerprint = \"{}\"\nkey = \"key.asc\"\nsignature = \"{{url}}.asc\"\n",
            sample.replace("https://…", "https://127.0.0.1/latest"),
            "0".repeat(40),
        );
        let manifest = bench.whole_recipe("sample.toml", &text);
        bench.ok(&["image", "show", &manifest]);
    }
}
