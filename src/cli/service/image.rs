//! The image of a service: asks its registry for the digest and the platforms that it has now, and
//! finds the credentials that the nodes need to pull it.

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::super::{
    client::{Client, DaemonError, list, text},
    image_name::{is_pinned, pinned, registry},
    login,
    output::print_to_stderr,
};

/// The images that are part of weft, and in no registry.
const BUILT_IN: [&str; 2] = ["weft/whoami", "host"];

#[derive(Debug, Args)]
pub(super) struct ImageFlags {
    /// Do not ask the registry for the digest and the platforms of the image: each node pulls the
    /// image by its name
    #[arg(long)]
    no_resolve_image: bool,
    /// Send the credentials of the image's registry, which "docker login" has stored, to the nodes
    /// that pull the image
    #[arg(long)]
    with_registry_auth: bool,
}

impl ImageFlags {
    /// The header with the credentials of the registry of `image`, if the user wants to send them.
    ///
    /// # Errors
    /// If the settings of the docker client cannot be read, or a credential helper fails.
    pub(super) fn credentials(&self, image: &str) -> Result<Option<String>> {
        if !self.with_registry_auth {
            return Ok(None);
        }
        let registry = registry(image);
        let found = login::header(registry)?;
        if found.is_none() {
            print_to_stderr(format_args!(
                "WARNING: there are no credentials of {registry}: store them with \"docker login {registry}\""
            ));
        }
        // An empty object removes the credentials that the service may have.
        Ok(Some(found.unwrap_or_else(|| "e30=".to_owned())))
    }

    /// Replaces the image in the spec of a service by one with its digest, and its platforms by
    /// those of the image. Prints a warning if the registry does not say them.
    pub(super) async fn resolve(&self, client: &Client, spec: &mut Value, auth: Option<&str>) {
        let task = &mut spec["TaskTemplate"];
        // They were those of another image.
        if let Some(placement) = task["Placement"].as_object_mut() {
            placement.remove("Platforms");
        }
        let image = text(task, "/ContainerSpec/Image").to_owned();
        if self.no_resolve_image || is_built_in(&image) {
            return;
        }
        match client.get_with_auth(&format!("/distribution/{image}/json"), auth).await {
            Ok(answer) => apply(task, &image, &answer),
            Err(error) => {
                let reason = match error.downcast_ref::<DaemonError>() {
                    Some(error) => error.message.clone(),
                    None => format!("{error:#}"),
                };
                print_to_stderr(format_args!(
                    "WARNING: no registry has given a digest of image {image} ({reason}): each node pulls it by its \
                     name, and they may get different versions"
                ));
            }
        }
    }
}

fn is_built_in(image: &str) -> bool {
    BUILT_IN.iter().any(|name| image.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(':')))
}

/// Writes what a registry has said of the image into a task template.
fn apply(task: &mut Value, image: &str, answer: &Value) {
    let digest = text(answer, "/Descriptor/digest");
    if !is_pinned(image) && !digest.is_empty() {
        task["ContainerSpec"]["Image"] = pinned(image, digest).into();
    }
    let platforms: Vec<Value> = list(answer, "/Platforms").iter().map(platform).collect();
    if !platforms.is_empty() {
        task["Placement"]["Platforms"] = platforms.into();
    }
}

/// Images call all 32-bit ARM architectures `arm`, and nodes say which of them they have. So such
/// an image is not restricted by its architecture, as with the docker client.
fn platform(of_image: &Value) -> Value {
    let arch = text(of_image, "/architecture");
    let arch = if arch.eq_ignore_ascii_case("arm") { "" } else { arch };
    json!({ "Architecture": arch, "OS": text(of_image, "/os") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_a_registry_pins_the_image() {
        let answer = json!({
            "Descriptor": { "digest": "sha256:ab" },
            "Platforms": [
                { "architecture": "amd64", "os": "linux" },
                { "architecture": "arm", "os": "linux", "variant": "v7" },
            ],
        });
        let platforms = json!([{ "Architecture": "amd64", "OS": "linux" }, { "Architecture": "", "OS": "linux" }]);
        for (image, expected) in [("web:1", "web:1@sha256:ab"), ("web:1@sha256:cd", "web:1@sha256:cd")] {
            let mut task = json!({ "ContainerSpec": { "Image": image }, "Placement": null });
            apply(&mut task, image, &answer);
            assert_eq!(
                task,
                json!({ "ContainerSpec": { "Image": expected }, "Placement": { "Platforms": platforms } })
            );
        }
        let mut task = json!({ "ContainerSpec": { "Image": "web" } });
        apply(&mut task, "web", &json!({ "Descriptor": { "digest": "sha256:ab" }, "Platforms": null }));
        assert_eq!(task, json!({ "ContainerSpec": { "Image": "web:latest@sha256:ab" } }));
    }

    #[test]
    fn images_of_weft_are_in_no_registry() {
        for (image, expected) in
            [("weft/whoami", true), ("weft/whoami:2", true), ("host", true), ("hosts", false), ("a/host", false)]
        {
            assert_eq!(is_built_in(image), expected, "{image}");
        }
    }
}
