//! Reads a value that an earlier feature level wrote: newer fields get their default.
//!
//! postcard writes the fields of a struct one after another, without names. [`Reader`] leaves the
//! fields that [`super::history`] lists for a later level out of the list that postcard reads, and
//! gives the rest to the type as a map from names to values. So the type sees that a field is
//! missing, and `#[serde(default)]` fills it. Only formats that identify variants by their index,
//! as postcard does, can be read in this way.

use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeSeed, EnumAccess, Error, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
        value::{StrDeserializer, U32Deserializer},
    },
};

use super::history::{Owner, since};

/// Deserializes what `level` wrote.
pub(super) struct Reader<D> {
    pub inner: D,
    pub level: u32,
}

/// A seed, a visitor or an access whose nested values are read with [`Reader`].
struct At<T> {
    inner: T,
    level: u32,
}

impl<'de, T: DeserializeSeed<'de>> DeserializeSeed<'de> for At<T> {
    type Value = T::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<T::Value, D::Error> {
        self.inner.deserialize(Reader { inner, level: self.level })
    }
}

/// The fields that `level` had, in their order.
fn fields_at(owner: Owner, fields: &'static [&'static str], level: u32) -> Vec<&'static str> {
    fields.iter().copied().filter(|field| since(owner, field) <= level).collect()
}

/// Passes calls without other arguments than the visitor on.
macro_rules! pass_on {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method(At { inner: visitor, level: self.level })
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Reader<D> {
    type Error = D::Error;

    pass_on! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_i128 deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64 deserialize_char deserialize_str deserialize_string deserialize_bytes
        deserialize_byte_buf deserialize_option deserialize_unit deserialize_seq deserialize_map
        deserialize_identifier deserialize_ignored_any
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_unit_struct(name, At { inner: visitor, level: self.level })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_newtype_struct(name, At { inner: visitor, level: self.level })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_tuple(len, At { inner: visitor, level: self.level })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_tuple_struct(name, len, At { inner: visitor, level: self.level })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let level = self.level;
        let known = fields_at(Owner::Type(name), fields, level);
        if known.len() == fields.len() {
            return self.inner.deserialize_struct(name, fields, At { inner: visitor, level });
        }
        self.inner.deserialize_tuple(known.len(), Named { visitor, fields: known, level })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_enum(name, variants, Enum { visitor, name, variants, level: self.level })
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// Passes plain values on to the visitor.
macro_rules! visit {
    ($($method:ident($type:ty);)*) => {
        $(fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            self.inner.$method(value)
        })*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for At<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.expecting(f)
    }

    visit! {
        visit_bool(bool);
        visit_i8(i8);
        visit_i16(i16);
        visit_i32(i32);
        visit_i64(i64);
        visit_i128(i128);
        visit_u8(u8);
        visit_u16(u16);
        visit_u32(u32);
        visit_u64(u64);
        visit_u128(u128);
        visit_f32(f32);
        visit_f64(f64);
        visit_char(char);
        visit_str(&str);
        visit_borrowed_str(&'de str);
        visit_string(String);
        visit_bytes(&[u8]);
        visit_borrowed_bytes(&'de [u8]);
        visit_byte_buf(Vec<u8>);
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Reader { inner, level: self.level })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(Reader { inner, level: self.level })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(At { inner, level: self.level })
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(At { inner, level: self.level })
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for At<A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        self.inner.next_element_seed(At { inner: seed, level: self.level })
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for At<A> {
    type Error = A::Error;

    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        self.inner.next_key_seed(At { inner: seed, level: self.level })
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.inner.next_value_seed(At { inner: seed, level: self.level })
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

/// Visits the values of these fields, and gives them to a struct's visitor by name.
struct Named<V> {
    visitor: V,
    fields: Vec<&'static str>,
    level: u32,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Named<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, values: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Fields { names: self.fields.into_iter(), values, level: self.level })
    }
}

struct Fields<A> {
    names: std::vec::IntoIter<&'static str>,
    values: A,
    level: u32,
}

impl<'de, A: SeqAccess<'de>> MapAccess<'de> for Fields<A> {
    type Error = A::Error;

    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        self.names.next().map(|name| seed.deserialize(StrDeserializer::new(name))).transpose()
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        let value = self.values.next_element_seed(At { inner: seed, level: self.level })?;
        value.ok_or_else(|| A::Error::custom("a field has no value"))
    }
}

struct Enum<V> {
    visitor: V,
    name: &'static str,
    variants: &'static [&'static str],
    level: u32,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Enum<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let Self { visitor, name, variants, level } = self;
        visitor.visit_enum(Variants { inner, name, variants, level })
    }
}

struct Variants<A> {
    inner: A,
    name: &'static str,
    variants: &'static [&'static str],
    level: u32,
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for Variants<A> {
    type Error = A::Error;
    type Variant = Variant<A::Variant>;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self::Variant), A::Error> {
        let Self { inner, name, variants, level } = self;
        let (index, inner): (VariantIndex, _) = inner.variant()?;
        let variant = usize::try_from(index.0).ok().and_then(|index| variants.get(index)).copied();
        let known = variant.filter(|variant| since(Owner::Type(name), variant) <= level);
        let variant = known.ok_or_else(|| A::Error::custom(format!("{name} has no variant {}", index.0)))?;
        let index: U32Deserializer<A::Error> = index.0.into_deserializer();
        let value = seed.deserialize(index)?;
        Ok((value, Variant { inner, owner: Owner::Variant(name, variant), level }))
    }
}

/// The number of a variant in its enum.
#[derive(Deserialize)]
#[serde(transparent)]
struct VariantIndex(u32);

struct Variant<A> {
    inner: A,
    owner: Owner,
    level: u32,
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Variant<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, A::Error> {
        self.inner.newtype_variant_seed(At { inner: seed, level: self.level })
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.inner.tuple_variant(len, At { inner: visitor, level: self.level })
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let Self { inner, owner, level } = self;
        let known = fields_at(owner, fields, level);
        if known.len() == fields.len() {
            return inner.struct_variant(fields, At { inner: visitor, level });
        }
        inner.tuple_variant(known.len(), Named { visitor, fields: known, level })
    }
}
