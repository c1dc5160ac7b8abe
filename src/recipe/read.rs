//! Recipe text → tables: every syntax error, unknown key and impossible value, not just the first.

use std::ops::Range;

use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue};

use super::diagnostic::{SourceText, nearest};
use super::schema;
use super::tables::RecipeTable;
use crate::error::Problem;

/// The version of the recipe format that this nestlab reads.
pub const SCHEMA: i64 = 1;

/// Reads the tables of `source`.
pub(crate) fn tables(source: &SourceText) -> Result<RecipeTable, Vec<Problem>> {
    let (mut table, errors) = DeTable::parse_recoverable(source.text());
    if !errors.is_empty() {
        return Err(errors.iter().map(|error| problem(source, error, None)).collect());
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
        match deserialized(&table) {
            Ok(recipe) if problems.is_empty() => return Ok(recipe),
            Ok(_) => return Err(problems),
            Err(error) => {
                let span = error.span().map(|span| narrowed(&table, &error, span));
                problems.push(problem(source, &error, span.clone()));
                // Without the value that is wrong, the next one comes to light.
                if !span.is_some_and(|span| keep(table.get_mut(), &|other| *other != span)) {
                    return Err(problems);
                }
            }
        }
    }
}

fn deserialized(table: &Spanned<DeTable<'_>>) -> Result<RecipeTable, toml::de::Error> {
    serde::Deserialize::deserialize(toml::de::Deserializer::from(table.clone()))
}

/// Returns the place of the item that is wrong, where `error` points at a whole list: the one that alone
/// in its list gives the same error.
fn narrowed(
    table: &Spanned<DeTable<'_>>,
    error: &toml::de::Error,
    span: Range<usize>,
) -> Range<usize> {
    let items = items_at(table.get_ref(), &span);
    let wrong = items.iter().find(|item| {
        let mut alone = table.clone();
        keep(alone.get_mut(), &|other| other == *item || !items.contains(other));
        deserialized(&alone).is_err_and(|other| other.message() == error.message())
    });
    wrong.cloned().unwrap_or(span)
}

/// Returns the places of the items of the list at `span`, if one is there.
fn items_at(table: &DeTable<'_>, span: &Range<usize>) -> Vec<Range<usize>> {
    table
        .values()
        .map(|value| match value.get_ref() {
            DeValue::Array(items) if value.span() == *span => {
                items.iter().map(Spanned::span).collect()
            }
            DeValue::Array(items) => items
                .iter()
                .filter_map(|item| item.get_ref().as_table())
                .map(|inner| items_at(inner, span))
                .find(|items| !items.is_empty())
                .unwrap_or_default(),
            DeValue::Table(inner) => items_at(inner, span),
            _ => Vec::new(),
        })
        .find(|items| !items.is_empty())
        .unwrap_or_default()
}

/// Returns what a parser or a type says, in the words of TOML instead of serde's.
fn problem(source: &SourceText, error: &toml::de::Error, span: Option<Range<usize>>) -> Problem {
    let end = source.text().len();
    let message = error
        .message()
        .replace("invalid type: map, expected a sequence", "one table where a list is expected")
        .replace("expected a sequence", "expected a list")
        .replace("invalid type: map", "invalid type: table")
        .replace("expected struct GuestTable", "expected a guest's table");
    let problem = source.problem(span.or(error.span()).unwrap_or(end..end), &message);
    if message.starts_with("one table where a list") {
        return problem.help("each item is a table of its own, with two brackets: `[[guest]]`");
    }
    problem
}

/// A recipe of a later nestlab is told to be just that, whatever else in it is not understood.
fn newer_schema(source: &SourceText, table: &DeTable<'_>) -> Option<Problem> {
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
    source: &SourceText,
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
    source: &SourceText,
    key: &Spanned<DeString<'_>>,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Problem {
    let word = key.get_ref().as_ref();
    let help = match nearest(word, known.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("the keys here are {}", known.collect::<Vec<_>>().join(", ")),
    };
    source.problem(key.span(), format!("unknown key `{word}`")).help(help)
}

/// Follows a `$ref`.
fn resolve<'a>(schema: &'a Json, root: &'a Json) -> &'a Json {
    let pointer = schema.get("$ref").and_then(Json::as_str);
    pointer.and_then(|at| root.pointer(at.trim_start_matches('#'))).unwrap_or(schema)
}

/// Keeps the values of `table` and of what is inside it whose place `wanted` accepts; returns whether
/// one went.
fn keep(table: &mut DeTable<'_>, wanted: &dyn Fn(&Range<usize>) -> bool) -> bool {
    let unwanted: Vec<_> =
        table.iter().filter(|(_, v)| !wanted(&v.span())).map(|(key, _)| key.clone()).collect();
    for key in &unwanted {
        table.remove(key.get_ref().as_ref());
    }
    table
        .iter_mut()
        .fold(!unwanted.is_empty(), |gone, (_, value)| keep_within(value, wanted) || gone)
}

fn keep_within(value: &mut Spanned<DeValue<'_>>, wanted: &dyn Fn(&Range<usize>) -> bool) -> bool {
    match value.get_mut() {
        DeValue::Table(inner) => keep(inner, wanted),
        DeValue::Array(items) => {
            let before = items.len();
            let mut kept = DeArray::new();
            items.iter().filter(|item| wanted(&item.span())).for_each(|i| kept.push(i.clone()));
            *items = kept;
            let gone = items.len() < before;
            items.iter_mut().fold(gone, |gone, item| keep_within(item, wanted) || gone)
        }
        _ => false,
    }
}
