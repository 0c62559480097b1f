//! A part of the file as it was written, of any shape. Only one item of it is in memory at a time: a table of a large
//! swarm has a million values.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Number;

/// A value; texts are the file's own where they are written there as they are meant.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'t> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'t, str>),
    List(Vec<Value<'t>>),
    Map(Map<'t>),
}

/// In order of keys.
pub(super) type Map<'t> = BTreeMap<Cow<'t, str>, Value<'t>>;

/// What a value is, for messages.
pub(super) fn describe(value: &Value<'_>) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::Text(s) => format!("the text {s:?}"),
        Value::List(_) => "a list".into(),
        Value::Map(_) => "an object".into(),
    }
}

/// What to make of a value while it is read.
pub(super) trait Shape<'t>: Sized {
    type Out;
    /// Of one without parts.
    fn scalar(self, value: Value<'t>) -> Self::Out;
    fn list<A: SeqAccess<'t>>(self, items: A) -> Result<Self::Out, A::Error>;
    fn map<A: MapAccess<'t>>(self, entries: A) -> Result<Self::Out, A::Error>;
}

/// Reads whatever comes as that shape.
pub(super) struct Read<S>(pub(super) S);

/// All of it, as a [`Value`].
pub(super) struct Whole;

impl<'t> Shape<'t> for Whole {
    type Out = Value<'t>;

    fn scalar(self, value: Value<'t>) -> Value<'t> {
        value
    }

    fn list<A: SeqAccess<'t>>(self, mut items: A) -> Result<Value<'t>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Read(Self))? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn map<A: MapAccess<'t>>(self, mut entries: A) -> Result<Value<'t>, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key_seed(Key)? {
            enter(&mut map, key, entries.next_value_seed(Read(Self))?)?;
        }
        Ok(Value::Map(map))
    }
}

/// Adds an entry of the file to what is read of a map. serde_json would silently keep the last of two with one key.
pub(super) fn enter<K: Ord + fmt::Debug + Clone, V, E: Error>(
    map: &mut BTreeMap<K, V>,
    key: K,
    value: V,
) -> Result<(), E> {
    match map.insert(key.clone(), value) {
        None => Ok(()),
        Some(_) => Err(E::custom(format!("duplicate key {key:?}"))),
    }
}

/// Reads a map's key.
pub(super) struct Key;

impl<'t> DeserializeSeed<'t> for Key {
    type Value = Cow<'t, str>;

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<Cow<'t, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'t> Visitor<'t> for Key {
    type Value = Cow<'t, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string key")
    }
    fn visit_borrowed_str<E>(self, v: &'t str) -> Result<Cow<'t, str>, E> {
        Ok(Cow::Borrowed(v))
    }
    fn visit_str<E>(self, v: &str) -> Result<Cow<'t, str>, E> {
        Ok(Cow::Owned(v.to_owned()))
    }
}

impl<'t, S: Shape<'t>> DeserializeSeed<'t> for Read<S> {
    type Value = S::Out;

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<S::Out, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'t, S: Shape<'t>> Visitor<'t> for Read<S> {
    type Value = S::Out;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_unit<E>(self) -> Result<S::Out, E> {
        Ok(self.0.scalar(Value::Null))
    }
    fn visit_none<E>(self) -> Result<S::Out, E> {
        Ok(self.0.scalar(Value::Null))
    }
    fn visit_some<D: Deserializer<'t>>(self, deserializer: D) -> Result<S::Out, D::Error> {
        self.deserialize(deserializer)
    }
    fn visit_bool<E>(self, v: bool) -> Result<S::Out, E> {
        Ok(self.0.scalar(Value::Bool(v)))
    }
    fn visit_u64<E>(self, v: u64) -> Result<S::Out, E> {
        Ok(self.0.scalar(Value::Number(v.into())))
    }
    fn visit_i64<E>(self, v: i64) -> Result<S::Out, E> {
        Ok(self.0.scalar(Value::Number(v.into())))
    }
    fn visit_f64<E>(self, v: f64) -> Result<S::Out, E> {
        Ok(self.0.scalar(Number::from_f64(v).map_or(Value::Null, Value::Number)))
    }
    fn visit_borrowed_str<E>(self, v: &'t str) -> Result<S::Out, E> {
        Ok(self.0.scalar(Value::Text(Cow::Borrowed(v))))
    }
    fn visit_str<E>(self, v: &str) -> Result<S::Out, E> {
        Ok(self.0.scalar(Value::Text(Cow::Owned(v.to_owned()))))
    }
    fn visit_string<E>(self, v: String) -> Result<S::Out, E> {
        Ok(self.0.scalar(Value::Text(Cow::Owned(v))))
    }
    fn visit_seq<A: SeqAccess<'t>>(self, items: A) -> Result<S::Out, A::Error> {
        self.0.list(items)
    }
    fn visit_map<A: MapAccess<'t>>(self, entries: A) -> Result<S::Out, A::Error> {
        self.0.map(entries)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    use super::*;

    fn read(text: &str) -> Result<Value<'_>, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let value = Read(Whole).deserialize(&mut deserializer)?;
        deserializer.end().map(|()| value)
    }

    fn plain(value: &Value<'_>) -> Json {
        match value {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Number(n) => Json::Number(n.clone()),
            Value::Text(s) => Json::String(s.to_string()),
            Value::List(items) => items.iter().map(plain).collect(),
            Value::Map(map) => Json::Object(map.iter().map(|(key, value)| (key.to_string(), plain(value))).collect()),
        }
    }

    fn json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<u64>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            (-1e9..1e9).prop_map(Json::from),
            ".{0,8}".prop_map(Json::from),
        ];
        leaf.prop_recursive(4, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Json::from),
                prop::collection::btree_map(".{0,4}", inner, 0..6)
                    .prop_map(|map| Json::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn reads_what_serde_json_reads(value in json(), pretty: bool) {
            let text = if pretty { format!("{value:#}") } else { value.to_string() };
            // Its own reading of fractions is not exact.
            let theirs: Json = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(plain(&read(&text).unwrap()), theirs);
        }

        #[test]
        fn refuses_what_serde_json_refuses(value in json(), cut in any::<prop::sample::Index>(), with in "[\\]}\",0x]?") {
            let text = value.to_string();
            let cut = cut.index(text.chars().count() + 1);
            let broken: String = text.chars().take(cut).chain(with.chars()).chain(text.chars().skip(cut + 1)).collect();
            match (read(&broken), serde_json::from_str::<Json>(&broken)) {
                (Ok(ours), Ok(theirs)) => prop_assert_eq!(plain(&ours), theirs),
                (Err(ours), Err(theirs)) => prop_assert_eq!(ours.to_string(), theirs.to_string()),
                // serde_json takes the last of two.
                (Err(ours), Ok(_)) => prop_assert!(ours.to_string().contains("duplicate key")),
                (Ok(ours), Err(theirs)) => prop_assert!(false, "{ours:?} in spite of {theirs}"),
            }
        }
    }

    #[test]
    fn a_key_is_there_once_at_any_depth() {
        for text in [r#"{"a": 1, "a": 1}"#, r#"[{"b": {"a": 1, "\u0061": 2}}]"#] {
            assert!(read(text).unwrap_err().to_string().contains("duplicate key \"a\""), "{text}");
        }
        assert_eq!(plain(&read(r#"{"b": {"a": 1}, "a": 2}"#).unwrap()), json!({"b": {"a": 1}, "a": 2}));
    }

    #[test]
    fn texts_are_those_of_the_file() {
        let Value::List(items) = read(r#"["plain", "esc\u0061ped"]"#).unwrap() else { panic!("no list") };
        assert!(matches!(&items[0], Value::Text(Cow::Borrowed("plain"))), "{items:?}");
        assert!(matches!(&items[1], Value::Text(Cow::Owned(text)) if text == "escaped"), "{items:?}");
    }
}
