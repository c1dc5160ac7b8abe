//! A value or a list of them, as one key of a recipe.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::{SeqAccessDeserializer, StrDeserializer};
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// A word, or a list of words that has at least one and none twice. The first is what counts where one is
/// asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OneOrMany<T> {
    first: T,
    further: Vec<T>,
}

impl<T: Copy> OneOrMany<T> {
    /// Returns the first.
    pub(crate) fn first(&self) -> T {
        self.first
    }

    /// Returns the others.
    pub(crate) fn further(&self) -> &[T] {
        &self.further
    }
}

impl<T: Copy + PartialEq> OneOrMany<T> {
    /// Returns whether `value` is one of them.
    pub(crate) fn contains(&self, value: T) -> bool {
        self.first == value || self.further.contains(&value)
    }
}

impl<T: fmt::Display> fmt::Display for OneOrMany<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        self.further.iter().try_for_each(|other| write!(f, " and {other}"))
    }
}

impl<'de, T: Deserialize<'de> + PartialEq + fmt::Display> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordOrList(PhantomData))
    }
}

struct WordOrList<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de> + PartialEq + fmt::Display> Visitor<'de> for WordOrList<T> {
    type Value = OneOrMany<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a word or a list of words")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<Self::Value, E> {
        let first = T::deserialize(StrDeserializer::new(word))?;
        Ok(OneOrMany { first, further: Vec::new() })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        let mut words = Vec::<T>::deserialize(SeqAccessDeserializer::new(list))?;
        if let Some(index) = (1..words.len()).find(|&index| words[..index].contains(&words[index]))
        {
            return Err(A::Error::custom(format!("`{}` is in the list twice", words[index])));
        }
        if words.is_empty() {
            return Err(A::Error::custom("the list is empty; leave the key out instead"));
        }
        Ok(OneOrMany { first: words.remove(0), further: words })
    }
}

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Several_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = T::json_schema(generator);
        let mut schema = schemars::json_schema!({ "oneOf": [
            one,
            { "type": "array", "items": one, "minItems": 1, "uniqueItems": true },
        ] });
        schema.remove("description");
        schema
    }
}
