//! Provides the images of tasks. weft's own image is built from the running program; the engine
//! pulls all others.
//!
//! [`super::DockerRuntime`] calls it before it creates a task's containers.

use std::{io, os::unix::fs::MetadataExt};

use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use bollard::{
    Docker, body_try_stream,
    query_parameters::{CreateImageOptionsBuilder, PruneImagesOptionsBuilder, TagImageOptionsBuilder},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use hyper::header::HeaderValue;
use serde_json::{Map, Value};
use tokio_util::io::ReaderStream;
use tracing::{info, warn};
use weft_model::spec::RegistryAuth;

use super::error::{engine_error, http_status, message};
use crate::runtime::{
    RuntimeError,
    reference::{LATEST, Reference},
    whoami,
};

/// Path of weft's own program in its image.
const PROGRAM: &str = "/weft";
/// Label with the build of weft that an image was made from.
const BUILD_LABEL: &str = "weft.build";

/// Builds weft's own image, unless the engine already has that of this build of weft.
pub(super) async fn ensure_own_image(docker: &Docker) -> Result<(), RuntimeError> {
    let metadata = std::fs::metadata("/proc/self/exe").map_err(RuntimeError::io("read", "/proc/self/exe"))?;
    let (size, seconds, nanos) = (metadata.size(), metadata.mtime(), metadata.mtime_nsec());
    let build = format!("{}-{size}-{seconds}.{nanos}", env!("CARGO_PKG_VERSION"));
    if build_of(docker, whoami::IMAGE).await?.as_ref() != Some(&build) {
        info!(build, "building the image weft/whoami");
        import_own_program(docker, &build).await?;
    }
    Ok(())
}

/// Makes an image available: tags the built-in image, or pulls an image that the engine does not
/// have, with the credentials `auth`.
pub(super) async fn ensure_image(
    docker: &Docker,
    image: &str,
    auth: Option<&RegistryAuth>,
) -> Result<(), RuntimeError> {
    let reference = Reference::parse(image);
    if reference.is_whoami() {
        return if reference.version == LATEST { Ok(()) } else { tag(docker, image).await };
    }
    match docker.inspect_image(image).await {
        Ok(_) => return Ok(()),
        Err(error) if http_status(&error) == Some(404) => {}
        Err(error) => return Err(engine_error("inspect the image")(error)),
    }
    let options =
        CreateImageOptionsBuilder::default().from_image(reference.name).tag(reference.version.as_str()).build();
    let docker = auth.map_or_else(|| docker.clone(), |auth| with_credentials(docker, auth));
    let pulled = docker.create_image(Some(options), None, None).try_for_each(|_| async { Ok(()) }).await;
    pulled.map_err(|error| RuntimeError::Image { image: image.to_owned(), reason: message(&error) })
}

/// A client whose requests have these credentials. bollard would write them in the standard
/// alphabet of base64, and the engine reads the URL-safe one: it would take a password with some
/// characters for no password.
fn with_credentials(docker: &Docker, auth: &RegistryAuth) -> Docker {
    let mut header = registry_header(auth);
    header.set_sensitive(true);
    docker.clone().with_request_modifier(move |mut request| {
        request.headers_mut().insert("X-Registry-Auth", header.clone());
        request
    })
}

fn registry_header(auth: &RegistryAuth) -> HeaderValue {
    let fields = auth.fields().into_iter().filter(|(_, text)| !text.is_empty());
    let json: Map<String, Value> = fields.map(|(name, text)| (name.to_owned(), text.into())).collect();
    HeaderValue::from_str(&URL_SAFE.encode(Value::Object(json).to_string())).expect("base64 is ASCII")
}

async fn build_of(docker: &Docker, image: &str) -> Result<Option<String>, RuntimeError> {
    match docker.inspect_image(image).await {
        Ok(found) => {
            Ok(found.config.and_then(|config| config.labels).and_then(|mut labels| labels.remove(BUILD_LABEL)))
        }
        Err(error) if http_status(&error) == Some(404) => Ok(None),
        Err(error) => Err(engine_error("inspect weft's own image")(error)),
    }
}

async fn tag(docker: &Docker, image: &str) -> Result<(), RuntimeError> {
    let reference = Reference::parse(image);
    let options = TagImageOptionsBuilder::default().repo(reference.name).tag(reference.version.as_str()).build();
    docker.tag_image(whoami::IMAGE, Some(options)).await.map_err(engine_error("tag weft's own image"))
}

/// Imports this program as an image that contains nothing else.
async fn import_own_program(docker: &Docker, build: &str) -> Result<(), RuntimeError> {
    let archive = archive().await.map_err(RuntimeError::io("read", "/proc/self/exe"))?;
    let options = CreateImageOptionsBuilder::default()
        .from_src("-")
        .repo(whoami::IMAGE)
        .tag("latest")
        .changes(vec![
            format!(r#"ENTRYPOINT ["{PROGRAM}","{}"]"#, whoami::COMMAND),
            format!("LABEL {BUILD_LABEL}={build}"),
        ])
        .build();
    docker
        .create_image(Some(options), Some(body_try_stream(archive)), None)
        .try_for_each(|_| async { Ok(()) })
        .await
        .map_err(engine_error("build weft's own image"))?;
    // Removes the images of older builds, which have no tag any more. The engine keeps images that
    // containers use.
    let filters = [("dangling", vec!["true"]), ("label", vec![BUILD_LABEL])].into_iter().collect();
    if let Err(error) = docker.prune_images(Some(PruneImagesOptionsBuilder::default().filters(&filters).build())).await
    {
        warn!(error = message(&error), "cannot remove images of older builds");
    }
    Ok(())
}

/// Streams a tar archive with this program as its only file.
async fn archive() -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static> {
    let program = tokio::fs::File::open("/proc/self/exe").await?;
    let len = program.metadata().await?.len();
    let mut header = tar::Header::new_ustar();
    header.set_path(&PROGRAM[1..])?;
    header.set_size(len);
    header.set_mode(0o755);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    let header = Bytes::copy_from_slice(header.as_bytes());
    // A file is padded to whole blocks of 512 bytes, and two empty blocks end the archive (tar(5)).
    let trailer = Bytes::from(vec![0; (len.next_multiple_of(512) - len) as usize + 1024]);
    let one = |bytes| futures_util::stream::once(async { Ok(bytes) });
    Ok(one(header).chain(ReaderStream::with_capacity(program, 1 << 20)).chain(one(trailer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_gets_credentials_in_the_alphabet_that_it_reads() {
        let auth = RegistryAuth { username: "ann".into(), password: "a?>?>ÿþ~~".into(), ..RegistryAuth::default() };
        let header = registry_header(&auth);
        let text = header.to_str().expect("ASCII");
        assert!(text.contains(['-', '_']) && !text.contains(['+', '/']), "{text}");
        let json: Value = serde_json::from_slice(&URL_SAFE.decode(text).expect("base64")).expect("JSON");
        assert_eq!(json, serde_json::json!({"username": "ann", "password": "a?>?>ÿþ~~"}));
    }
}
