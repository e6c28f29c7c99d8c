//! Names of images, as in `registry:5000/team/web:1@sha256:…`: which registry has the image, and
//! how its name is shown and pinned. Pure.

/// The registry of names that name none.
pub(super) const DOCKER_HUB: &str = "docker.io";

/// The host of the registry, with its port.
pub(super) fn registry(image: &str) -> &str {
    let is_host = |part: &str| {
        part.contains(['.', ':']) || part == "localhost" || part.contains(|c: char| c.is_ascii_uppercase())
    };
    match image.split_once('/') {
        Some(("index.docker.io", _)) => DOCKER_HUB,
        Some((host, _)) if is_host(host) => host,
        _ => DOCKER_HUB,
    }
}

/// The name with its tag, `latest` by default, and the digest.
pub(super) fn pinned(image: &str, digest: &str) -> String {
    let tag = if has_tag(image) { "" } else { ":latest" };
    format!("{image}{tag}@{digest}")
}

/// Whether the name says which content the image has.
pub(super) fn is_pinned(image: &str) -> bool {
    image.contains('@')
}

/// The name as tables show it: with its tag, or with the digest if it has no tag.
pub(super) fn shown(image: &str) -> &str {
    match image.split_once('@') {
        Some((name, _)) if has_tag(name) => name,
        _ => image,
    }
}

fn has_tag(image: &str) -> bool {
    // A colon before a slash belongs to the registry's port.
    image.rsplit_once(':').is_some_and(|(_, tag)| !tag.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_begins_with_its_registry_or_is_of_docker_hub() {
        for (image, expected) in [
            ("web", "docker.io"),
            ("team/web:1", "docker.io"),
            ("docker.io/team/web", "docker.io"),
            ("index.docker.io/team/web", "docker.io"),
            ("registry.test/web", "registry.test"),
            ("127.0.0.1:5000/web:1@sha256:ab", "127.0.0.1:5000"),
            ("[2001:db8::1]:5000/web", "[2001:db8::1]:5000"),
            ("localhost/web", "localhost"),
            ("web:5000", "docker.io"),
            ("HOST/web", "HOST"),
        ] {
            assert_eq!(registry(image), expected, "{image}");
        }
    }

    #[test]
    fn a_pinned_name_is_shown_with_its_tag_alone() {
        for (image, pinned_name, shown_name) in [
            ("web", "web:latest@sha256:ab", "web:latest"),
            ("web:1", "web:1@sha256:ab", "web:1"),
            ("localhost:5000/web", "localhost:5000/web:latest@sha256:ab", "localhost:5000/web:latest"),
        ] {
            assert_eq!(pinned(image, "sha256:ab"), pinned_name);
            assert_eq!((shown(pinned_name), is_pinned(pinned_name)), (shown_name, true));
            assert_eq!((shown(image), is_pinned(image)), (image, false));
        }
        assert_eq!(shown("localhost:5000/web@sha256:ab"), "localhost:5000/web@sha256:ab");
    }
}
