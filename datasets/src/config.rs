//! One serde shape for every configurable method.
//!
//! A method is named by a bare string (`"embedded"`) or by a table of one key
//! (`{ embedded = { documents = 4 } }`). Unknown names and unknown keys are
//! errors that list the known ones.

/// Implements `Serialize` and `Deserialize` for an enum of one-field variants,
/// each of them a method's strict settings struct. The bare name reads as the
/// method with an empty table of settings, so a method whose settings have no
/// default reports its missing field.
macro_rules! method_config {
    ($config:ident, $what:literal, { $($name:literal => $variant:ident($settings:ty)),+ $(,)? }) => {
        impl serde::Serialize for $config {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeMap as _;
                let mut map = serializer.serialize_map(Some(1))?;
                match self {
                    $(Self::$variant(settings) => map.serialize_entry($name, settings)?,)+
                }
                map.end()
            }
        }

        impl<'de> serde::Deserialize<'de> for $config {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                // The key is checked where it is read, so that the error points at it.
                struct Name(&'static str);

                impl<'de> serde::Deserialize<'de> for Name {
                    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                        let name = String::deserialize(d)?;
                        $(if name == $name { return Ok(Self($name)); })+
                        let known: &[&str] = &[$($name),+];
                        Err(serde::de::Error::custom(format_args!(
                            concat!("unknown ", $what, " `{}`; known: {}"), name, known.join(", ")
                        )))
                    }
                }

                struct Method;

                impl<'de> serde::de::Visitor<'de> for Method {
                    type Value = $config;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str(concat!("the name of a ", $what, " or a table of one ", $what))
                    }

                    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<$config, E> {
                        use serde::de::IntoDeserializer as _;
                        let name: serde::de::value::StrDeserializer<'_, E> = name.into_deserializer();
                        let name = <Name as serde::Deserialize>::deserialize(name)?;
                        let empty = std::iter::empty::<(String, bool)>();
                        let empty = serde::de::value::MapDeserializer::<_, E>::new(empty);
                        match name.0 {
                            $($name => Ok($config::$variant(<$settings as serde::Deserialize>::deserialize(empty)?)),)+
                            _ => Err(E::custom(concat!("unknown ", $what))),
                        }
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<$config, A::Error> {
                        use serde::de::Error as _;
                        let Some(name) = map.next_key::<Name>()? else {
                            return Err(A::Error::custom(concat!("an empty table names no ", $what)));
                        };
                        let config = match name.0 {
                            $($name => $config::$variant(map.next_value::<$settings>()?),)+
                            _ => return Err(A::Error::custom(concat!("unknown ", $what))),
                        };
                        match map.next_key::<Name>()? {
                            None => Ok(config),
                            Some(second) => Err(A::Error::custom(format_args!(
                                concat!("`{}` and `{}` in one table; name one ", $what), name.0, second.0
                            ))),
                        }
                    }
                }

                deserializer.deserialize_any(Method)
            }
        }
    };
}

pub(crate) use method_config;
