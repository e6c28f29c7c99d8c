//! Image references: a name and a version, as in `registry:5000/name:tag` or `name@sha256:…`. Pure.
//!
//! Both runtimes and the agent parse a task's image here. This module must not know where images
//! come from.

use super::whoami;

/// The version of a reference that has none.
pub(crate) const LATEST: Version<'static> = Version::Tag("latest");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version<'a> {
    Tag(&'a str),
    /// The hash of the image's content, as `sha256:…`.
    Digest(&'a str),
}

impl<'a> Version<'a> {
    pub(crate) fn as_str(self) -> &'a str {
        match self {
            Self::Tag(text) | Self::Digest(text) => text,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reference<'a> {
    /// Includes the registry, if there is one.
    pub(crate) name: &'a str,
    pub(crate) version: Version<'a>,
}

impl<'a> Reference<'a> {
    /// Parses `NAME[:TAG][@DIGEST]`. A tag beside a digest is ignored, because the digest
    /// identifies the image.
    pub(crate) fn parse(image: &'a str) -> Self {
        let (tagged, digest) = match image.split_once('@') {
            Some((tagged, digest)) => (tagged, Some(Version::Digest(digest))),
            None => (image, None),
        };
        let (name, version) = match tagged.rsplit_once(':') {
            // A colon before a slash belongs to the registry's port.
            Some((name, tag)) if !tag.contains('/') => (name, Version::Tag(tag)),
            _ => (tagged, LATEST),
        };
        Self { name, version: digest.unwrap_or(version) }
    }

    /// Whether this is the built-in image. Each of its tags means the program of this build of
    /// weft; a digest cannot.
    pub(crate) fn is_whoami(self) -> bool {
        self.name == whoami::IMAGE && matches!(self.version, Version::Tag(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_name_and_the_version() {
        let check = |image, name, version| assert_eq!(Reference::parse(image), Reference { name, version }, "{image}");
        check("nginx", "nginx", LATEST);
        check("nginx:1.27", "nginx", Version::Tag("1.27"));
        check("localhost:5000/web", "localhost:5000/web", LATEST);
        check("localhost:5000/web:v2", "localhost:5000/web", Version::Tag("v2"));
        check("web@sha256:abc", "web", Version::Digest("sha256:abc"));
        check("localhost:5000/web:v2@sha256:abc", "localhost:5000/web", Version::Digest("sha256:abc"));
    }

    #[test]
    fn the_built_in_image_matches_any_tag_and_no_digest() {
        for image in ["weft/whoami", "weft/whoami:latest", "weft/whoami:v2"] {
            assert!(Reference::parse(image).is_whoami(), "{image}");
        }
        for image in ["whoami", "weft/whoami2", "localhost:5000/weft/whoami", "weft/whoami@sha256:abc"] {
            assert!(!Reference::parse(image).is_whoami(), "{image}");
        }
    }
}
