//! The JSON Schema of recipes, for editors and for the reader's own list of known keys.

use schemars::Schema;
use schemars::generate::SchemaSettings;

use super::model::RecipeTable;

/// Returns the JSON Schema (2020-12) of a recipe.
pub fn recipe() -> Schema {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<RecipeTable>()
}
