//! The JSON Schema of recipes, for editors and for the reader's own list of known keys.

use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use serde_json::Value as Json;

use super::tables::RecipeTable;

/// Returns the JSON Schema (2020-12) of a recipe.
pub fn recipe() -> Schema {
    SchemaSettings::draft2020_12()
        .with_transform(RecursiveTransform(plain))
        .into_generator()
        .into_root_schema_for::<RecipeTable>()
}

/// Takes out what TOML does not have (`null`), what only Rust has (`int64`), and the line breaks of doc
/// comments.
fn plain(schema: &mut Schema) {
    if schema.get("format").is_some_and(|format| format != "regex") {
        schema.remove("format");
    }
    if let Some(Json::Array(types)) = schema.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(Json::Array(mut choices)) = schema.remove("anyOf") {
        choices.retain(|choice| choice.get("type") != Some(&Json::from("null")));
        // What is left is the one value that an optional key has; its own description comes first.
        if let [Json::Object(only)] = choices.as_slice() {
            for (key, value) in only {
                if schema.get(key).is_none() {
                    schema.insert(key.clone(), value.clone());
                }
            }
        }
    }
    if let Some(Json::String(description)) = schema.get_mut("description") {
        *description = description.replace('\n', " ");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value as Json;

    /// Collects every key of `schema` with its own schema, by path.
    fn keys(schema: &Json, root: &Json, path: &str, all: &mut BTreeMap<String, Json>) {
        let schema = match schema.get("$ref").and_then(Json::as_str) {
            Some(pointer) => root.pointer(pointer.trim_start_matches('#')).expect("is defined"),
            None => schema,
        };
        for (key, inner) in schema.get("properties").and_then(Json::as_object).into_iter().flatten()
        {
            let path = format!("{path}{key}");
            keys(inner, root, &format!("{path}."), all);
            all.insert(path, inner.clone());
        }
        if let Some(inner) = schema.get("items") {
            keys(inner, root, path, all);
        }
    }

    fn every_key() -> BTreeMap<String, Json> {
        let schema = super::recipe().to_value();
        let mut all = BTreeMap::new();
        keys(&schema, &schema, "", &mut all);
        all
    }

    #[test]
    fn the_schema_names_every_key_and_says_what_it_means() {
        let all = every_key();
        let expected = "description guest guest.cpus guest.disk guest.firmware guest.gui \
            guest.host-key guest.hypervisor guest.image guest.memory guest.name guest.nested \
            guest.networks guest.overcommit guest.packages guest.parent guest.reach-host guest.ready guest.runs-in \
            guest.serial-pattern \
            guest.snapshot-before guest.ssh guest.ssh.key guest.ssh.port guest.ssh.user guest.vm \
            host host.host-key host.hypervisor host.ssh limits limits.patience mirror name proxy \
            schema";
        let names: Vec<_> = all.keys().map(String::as_str).collect();
        assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());
        for (key, schema) in &all {
            let described = schema.get("description").and_then(Json::as_str);
            assert!(described.is_some_and(|text| !text.is_empty()), "{key} has no description");
        }
    }

    #[test]
    fn nothing_in_the_schema_is_what_toml_does_not_have() {
        let text = super::recipe().to_value().to_string();
        for foreign in ["null", "anyOf", "int64", "uint"] {
            assert!(!text.contains(foreign), "{foreign} in {text}");
        }
    }

    #[test]
    fn unknown_keys_and_missing_ones_are_errors_in_an_editor_too() {
        let schema = super::recipe().to_value();
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["required"], serde_json::json!(["schema", "name", "guest"]));
        assert_eq!(schema["$defs"]["GuestTable"]["additionalProperties"], false);
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    }

    #[test]
    fn the_recipe_that_init_writes_shows_every_key() {
        let template = include_str!("../cli/init.toml");
        for path in every_key().keys() {
            let key = path.rsplit('.').next().expect("a path has a last part");
            let shown = template.lines().map(|line| line.trim_start_matches('#')).any(|line| {
                line.starts_with(&format!("{key} ="))
                    || line.starts_with(&format!("[{key}]"))
                    || line.starts_with(&format!("[[{key}]]"))
                    || line.starts_with("ssh =") && line.contains(&format!("{key} ="))
            });
            assert!(shown, "`{path}` is missing in the template");
        }
        let origin = crate::recipe::RecipeOrigin::Shipped;
        let recipe = crate::recipe::Recipe::parse(template, origin);
        assert!(recipe.is_ok(), "{:?}", recipe.err());
    }
}
