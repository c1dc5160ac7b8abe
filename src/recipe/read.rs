//! Recipe text → tables: every syntax error, unknown key and impossible value, not just the first.

use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue};

use super::diagnostic::{Source, nearest};
use super::model::RecipeTable;
use super::schema;
use crate::error::Problem;

/// The version of the recipe format that this nestlab reads.
pub const SCHEMA: i64 = 1;

/// Reads the tables of `source`.
pub(crate) fn tables(source: &Source) -> Result<RecipeTable, Vec<Problem>> {
    let (mut table, errors) = DeTable::parse_recoverable(source.text());
    if !errors.is_empty() {
        return Err(errors.iter().map(|error| problem(source, error)).collect());
    }
    if let Some(newer) = newer_schema(source, table.get_ref()) {
        return Err(vec![newer]);
    }
    let mut problems = Vec::new();
    let schema = schema::recipe();
    remove_unknown_keys(
        source,
        table.get_mut(),
        schema.as_value(),
        schema.as_value(),
        &mut problems,
    );
    loop {
        match serde::Deserialize::deserialize(toml::de::Deserializer::from(table.clone())) {
            Ok(recipe) if problems.is_empty() => return Ok(recipe),
            Ok(_) => return Err(problems),
            Err(error) => {
                problems.push(problem(source, &error));
                // Without the value that is wrong, the next one comes to light.
                let removed = error.span().is_some_and(|span| remove(table.get_mut(), &span));
                if !removed {
                    return Err(problems);
                }
            }
        }
    }
}

fn problem(source: &Source, error: &toml::de::Error) -> Problem {
    let end = source.text().len();
    source.problem(error.span().unwrap_or(end..end), error.message())
}

/// A recipe of a later nestlab is told to be just that, whatever else in it is not understood.
fn newer_schema(source: &Source, table: &DeTable<'_>) -> Option<Problem> {
    let value = table.get("schema")?;
    let DeValue::Integer(number) = value.get_ref() else { return None };
    let number = i64::from_str_radix(number.as_str(), number.radix()).ok()?;
    (number > SCHEMA).then(|| {
        source
            .problem(
                value.span(),
                format!("this recipe has schema {number}, and this nestlab reads {SCHEMA}"),
            )
            .help("use a newer nestlab")
    })
}

/// Removes the keys of `table` that `schema` does not have, and tells of each.
fn remove_unknown_keys(
    source: &Source,
    table: &mut DeTable<'_>,
    schema: &Json,
    root: &Json,
    problems: &mut Vec<Problem>,
) {
    let Some(known) = resolve(schema, root).get("properties").and_then(Json::as_object) else {
        return;
    };
    let (here, unknown): (Vec<_>, Vec<_>) =
        table.keys().cloned().partition(|key| known.contains_key(key.get_ref().as_ref()));
    for key in unknown {
        problems.push(unknown_key(source, &key, known.keys().map(String::as_str)));
        table.remove(key.get_ref().as_ref());
    }
    for key in here {
        let name = key.get_ref().as_ref();
        let schema = resolve(&known[name], root);
        match table.get_mut(name).map(Spanned::get_mut) {
            Some(DeValue::Table(inner)) => {
                remove_unknown_keys(source, inner, schema, root, problems);
            }
            Some(DeValue::Array(items)) => {
                for item in items.iter_mut() {
                    if let DeValue::Table(inner) = item.get_mut() {
                        remove_unknown_keys(source, inner, &schema["items"], root, problems);
                    }
                }
            }
            _ => {}
        }
    }
}

fn unknown_key<'a>(
    source: &Source,
    key: &Spanned<DeString<'_>>,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Problem {
    let word = key.get_ref().as_ref();
    let help = match nearest(word, known.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("keys here are {}", known.collect::<Vec<_>>().join(", ")),
    };
    source.problem(key.span(), format!("unknown key `{word}`")).help(help)
}

/// Follows `$ref`, and an optional value to the value itself.
fn resolve<'a>(schema: &'a Json, root: &'a Json) -> &'a Json {
    if let Some(pointer) = schema.get("$ref").and_then(Json::as_str) {
        let pointer = pointer.trim_start_matches('#');
        return root.pointer(pointer).map_or(schema, |schema| resolve(schema, root));
    }
    match schema.get("anyOf").and_then(|any| any.get(0)) {
        Some(first) => resolve(first, root),
        None => schema,
    }
}

/// Removes the value at `span`, wherever it stands in `table`; returns whether it was there.
fn remove(table: &mut DeTable<'_>, span: &std::ops::Range<usize>) -> bool {
    let key = table.iter().find(|(_, value)| value.span() == *span).map(|(key, _)| key.clone());
    match key {
        Some(key) => table.remove(key.get_ref().as_ref()).is_some(),
        None => table.iter_mut().any(|(_, value)| remove_within(value, span)),
    }
}

fn remove_within(value: &mut Spanned<DeValue<'_>>, span: &std::ops::Range<usize>) -> bool {
    match value.get_mut() {
        DeValue::Table(inner) => remove(inner, span),
        DeValue::Array(items) if items.iter().any(|item| item.span() == *span) => {
            let mut kept = DeArray::new();
            items.iter().filter(|item| item.span() != *span).for_each(|i| kept.push(i.clone()));
            *items = kept;
            true
        }
        DeValue::Array(items) => items.iter_mut().any(|item| remove_within(item, span)),
        _ => false,
    }
}
