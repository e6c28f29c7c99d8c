//! What registries say of images: the digest and the platforms of a name.
//!
//! Current clients ask for these before they create a service, and write them into its spec. Their
//! request goes to the container engine of this node ([`inspect`]). For clients of API 1.29 and
//! earlier, the handlers of services ask the engine themselves ([`pin`]), as Docker does.

use axum::{
    extract::{Request, State},
    response::Response,
};
use weft_model::{WHOAMI_IMAGE, spec::RegistryAuth};

use super::{
    Api, credentials, engine,
    error::ApiError,
    features,
    version::{ApiVersion, ClientVersion},
};

/// The first version of the API whose clients ask for digests themselves.
const CLIENTS_RESOLVE: ApiVersion = ApiVersion::new(1, 30);

/// `GET /distribution/{name}/json`
pub(super) async fn inspect(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    let path = request.uri().path();
    let image = path.strip_prefix("/distribution/").and_then(|rest| rest.strip_suffix("/json")).unwrap_or_default();
    if is_built_in(image) {
        return Err(features::BUILT_IN_DIGESTS.refusal_of(&format!("a digest of {image}")));
    }
    engine::forward(State(api), request).await
}

/// For a client that does not ask for digests itself: replaces the name of the image by one with
/// the digest that it has now. If this fails, returns a warning.
pub(super) async fn pin(
    api: &Api,
    client: ClientVersion,
    image: &mut String,
    auth: Option<&RegistryAuth>,
) -> Option<String> {
    let is_old = client.0.is_some_and(|version| version < CLIENTS_RESOLVE);
    if !is_old || image.contains('@') || is_built_in(image) {
        return None;
    }
    let found = match &api.node.engine {
        Some(socket) => {
            let auth = auth.map(credentials::encode);
            engine::distribution(socket, image, auth.as_deref()).await.map_err(|error| error.to_string())
        }
        None => Err(format!("node {} has no container engine", api.node.hostname)),
    };
    let pinned = found.and_then(|answer| {
        let digest = answer.pointer("/Descriptor/digest").and_then(serde_json::Value::as_str);
        digest.map(|digest| pinned(image, digest)).ok_or_else(|| "the engine's answer has no digest".to_owned())
    });
    match pinned {
        Ok(pinned) => {
            *image = pinned;
            None
        }
        Err(reason) => {
            tracing::warn!(image, reason, "cannot find the digest of an image");
            Some(format!(
                "no registry has given a digest of image {image} ({reason}): each node pulls it by its name, and they \
                 may get different versions"
            ))
        }
    }
}

/// Whether the image is built into weft, and in no registry. A registry may have another image of
/// this name.
fn is_built_in(image: &str) -> bool {
    image.strip_prefix(WHOAMI_IMAGE).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

/// The name with its tag and the digest.
fn pinned(image: &str, digest: &str) -> String {
    let has_tag = image.rsplit_once(':').is_some_and(|(_, tag)| !tag.contains('/'));
    let tag = if has_tag { "" } else { ":latest" };
    format!("{image}{tag}@{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_name_has_a_tag_and_the_digest() {
        for (image, expected) in [
            ("web", "web:latest@sha256:ab"),
            ("web:1", "web:1@sha256:ab"),
            ("localhost:5000/web", "localhost:5000/web:latest@sha256:ab"),
            ("localhost:5000/web:1", "localhost:5000/web:1@sha256:ab"),
        ] {
            assert_eq!(pinned(image, "sha256:ab"), expected);
        }
    }

    #[test]
    fn only_the_programs_own_image_is_built_in() {
        for (image, is) in [
            ("weft/whoami", true),
            ("weft/whoami:2", true),
            ("weft/whoami2", false),
            ("weft/whoami@sha256:ab", false),
            ("localhost:5000/weft/whoami", false),
        ] {
            assert_eq!(is_built_in(image), is, "{image}");
        }
    }
}
