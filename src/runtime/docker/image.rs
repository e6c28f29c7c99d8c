//! Images for the engine: weft's own are made from this very program, all others are the engine's, pulled where missing.

use std::{io, os::unix::fs::MetadataExt};

use bollard::{
    Docker, body_try_stream,
    query_parameters::{CreateImageOptionsBuilder, PruneImagesOptionsBuilder, TagImageOptionsBuilder},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use tokio_util::io::ReaderStream;
use tracing::{info, warn};

use super::{engine, reason, status};
use crate::runtime::{
    RuntimeError,
    reference::{LATEST, Reference},
    whoami,
};

/// Where weft's own program stands in its images.
pub(super) const PROGRAM: &str = "/weft";
/// The image of sandboxes: the same as whoami's, by the name that people expect to see there.
pub(super) const PAUSE: &str = "weft/pause:latest";
/// Says which build of weft an image was made from.
const BUILD_LABEL: &str = "weft.build";

/// Makes weft's own images unless they are there, of this very build.
pub(super) async fn provide_own(docker: &Docker) -> Result<(), RuntimeError> {
    let metadata = std::fs::metadata("/proc/self/exe").map_err(RuntimeError::io("read", "/proc/self/exe"))?;
    let (size, seconds, nanos) = (metadata.size(), metadata.mtime(), metadata.mtime_nsec());
    let build = format!("{}-{size}-{seconds}.{nanos}", env!("CARGO_PKG_VERSION"));
    for image in [PAUSE, whoami::IMAGE] {
        if build_of(docker, image).await?.as_ref() != Some(&build) {
            info!(build, "making the images weft/whoami and weft/pause");
            make(docker, &build).await?;
            tag(docker, PAUSE).await?;
            return Ok(());
        }
    }
    Ok(())
}

/// Gets an image, from wherever it is found first.
pub(super) async fn provide(docker: &Docker, image: &str) -> Result<(), RuntimeError> {
    let reference = Reference::parse(image);
    if reference.is_whoami() {
        return if reference.version == LATEST { Ok(()) } else { tag(docker, image).await };
    }
    match docker.inspect_image(image).await {
        Ok(_) => return Ok(()),
        Err(error) if status(&error) == Some(404) => {}
        Err(error) => return Err(engine("inspect the image")(error)),
    }
    let options =
        CreateImageOptionsBuilder::default().from_image(reference.name).tag(reference.version.as_str()).build();
    let pulled = docker.create_image(Some(options), None, None).try_for_each(|_| async { Ok(()) }).await;
    pulled.map_err(|error| RuntimeError::Image { image: image.to_owned(), reason: reason(&error) })
}

async fn build_of(docker: &Docker, image: &str) -> Result<Option<String>, RuntimeError> {
    match docker.inspect_image(image).await {
        Ok(found) => {
            Ok(found.config.and_then(|config| config.labels).and_then(|mut labels| labels.remove(BUILD_LABEL)))
        }
        Err(error) if status(&error) == Some(404) => Ok(None),
        Err(error) => Err(engine("inspect weft's own image")(error)),
    }
}

async fn tag(docker: &Docker, image: &str) -> Result<(), RuntimeError> {
    let reference = Reference::parse(image);
    let options = TagImageOptionsBuilder::default().repo(reference.name).tag(reference.version.as_str()).build();
    docker.tag_image(whoami::IMAGE, Some(options)).await.map_err(engine("name weft's own image"))
}

/// Imports this program as an image with nothing else in it.
async fn make(docker: &Docker, build: &str) -> Result<(), RuntimeError> {
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
        .map_err(engine("make weft's own image"))?;
    // An older build's image has lost its name to this one. One that still has containers stays.
    let filters = [("dangling", vec!["true"]), ("label", vec![BUILD_LABEL])].into_iter().collect();
    if let Err(error) = docker.prune_images(Some(PruneImagesOptionsBuilder::default().filters(&filters).build())).await
    {
        warn!(error = reason(&error), "cannot remove images of older builds");
    }
    Ok(())
}

/// This program as a tar archive, read as it is sent.
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
    // Contents are filled up to whole blocks of 512 bytes; two empty blocks end the archive.
    let trailer = Bytes::from(vec![0; (len.next_multiple_of(512) - len) as usize + 1024]);
    let one = |bytes| futures_util::stream::once(async { Ok(bytes) });
    Ok(one(header).chain(ReaderStream::with_capacity(program, 1 << 20)).chain(one(trailer)))
}
