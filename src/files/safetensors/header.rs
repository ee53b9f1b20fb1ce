//! The JSON of a safetensors header, as serde visits it: the place where a name that comes twice can still be seen.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::METADATA;
use crate::files::json::{Texts, each_once};
use crate::files::{StoredDtype, shown};

/// The header as JSON gives it.
pub(super) struct Header {
    /// The free text.
    pub(super) metadata: BTreeMap<String, String>,
    /// Every tensor, in the order of the text.
    pub(super) entries: Vec<(String, Entry)>,
}

/// What the header says of one tensor.
pub(super) struct Entry {
    pub(super) dtype: StoredDtype,
    pub(super) shape: Vec<usize>,
    /// Begin and end, from the end of the header.
    pub(super) offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Header, A::Error> {
                let mut metadata: Option<BTreeMap<String, String>> = None;
                let mut entries = Vec::new();
                each_once(map, "", |name, map| {
                    if name == METADATA {
                        metadata = map.next_value::<Option<Texts>>()?.map(|metadata| metadata.0);
                    } else {
                        let entry = map.next_value::<Entry>();
                        let entry = entry.map_err(|error| A::Error::custom(format!("tensor {}: {error}", shown(&name))))?;
                        entries.push((name, entry));
                    }
                    Ok(())
                })?;
                Ok(Header { metadata: metadata.unwrap_or_default(), entries })
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
                let (mut dtype, mut shape, mut offsets) = (None, None, None);
                while let Some(field) = map.next_key::<String>()? {
                    let twice = match field.as_str() {
                        "dtype" => dtype.replace(map.next_value()?).is_some(),
                        "shape" => shape.replace(map.next_value()?).is_some(),
                        "data_offsets" => offsets.replace(map.next_value()?).is_some(),
                        // The reference passes over fields that it does not know.
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            false
                        }
                    };
                    if twice {
                        return Err(A::Error::custom(format!("{field} comes twice")));
                    }
                }
                let missing = A::Error::missing_field;
                Ok(Entry {
                    dtype: dtype.ok_or_else(|| missing("dtype"))?,
                    shape: shape.ok_or_else(|| missing("shape"))?,
                    offsets: offsets.ok_or_else(|| missing("data_offsets"))?,
                })
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

impl<'de> Deserialize<'de> for StoredDtype {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        StoredDtype::from_safetensors_name(&name)
            .ok_or_else(|| D::Error::custom(format!("dtype {} is not one that safetensors defines", shown(&name))))
    }
}
