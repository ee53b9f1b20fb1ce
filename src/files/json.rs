//! JSON in which each key of an object comes once. Of two, one reader takes the first and another the last.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::shown;

/// Hand every key of an object to `take`, which takes its value; one that comes twice is refused, and called `what`.
pub(super) fn each_once<'de, A: MapAccess<'de>>(
    mut map: A,
    what: &str,
    mut take: impl FnMut(String, &mut A) -> Result<(), A::Error>,
) -> Result<(), A::Error> {
    let mut keys = HashSet::new();
    while let Some(key) = map.next_key::<String>()? {
        if !keys.insert(key.clone()) {
            return Err(A::Error::custom(format!("{what}{} comes twice", shown(&key))));
        }
        take(key, &mut map)?;
    }
    Ok(())
}

/// The value that a text is; or what is wrong with it, in words that follow its name.
pub(super) fn read(text: &[u8]) -> Result<Value, String> {
    match serde_json::from_slice(text) {
        Ok(Once(value)) => Ok(value),
        Err(error) if error.is_data() => Err(format!("is ambiguous: {error}")),
        Err(error) => Err(format!("is not JSON: {error}")),
    }
}

/// Any value whose objects have each key once.
struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values;

        impl<'de> Visitor<'de> for Values {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value of JSON")
            }

            fn visit_unit<E: Error>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(Once(item)) = items.next_element()? {
                    list.push(item);
                }
                Ok(list.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
                let mut object = Map::new();
                each_once(map, "the key ", |key, map| {
                    let Once(value) = map.next_value()?;
                    object.insert(key, value);
                    Ok(())
                })?;
                Ok(object.into())
            }
        }

        deserializer.deserialize_any(Values).map(Once)
    }
}

/// The free text of a file by key, each key once.
pub(super) struct Texts(pub(super) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings as __metadata__")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Texts, A::Error> {
                let mut texts = BTreeMap::new();
                each_once(map, "the metadata key ", |key, map| {
                    texts.insert(key, map.next_value()?);
                    Ok(())
                })?;
                Ok(Texts(texts))
            }
        }

        deserializer.deserialize_map(Fields)
    }
}
