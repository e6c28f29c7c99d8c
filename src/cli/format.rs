//! Formats ids, errors, states, ages and sizes as the docker client does. Pure, except that
//! [`time_ago`] reads the clock.

use jiff::Timestamp;

use super::image_name;

/// Whether ids and errors are shortened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Truncation {
    Short,
    Full,
}

impl Truncation {
    /// The lengths of a shortened id and a shortened error, in characters. They are the same as in
    /// the docker client.
    const ID_LEN: usize = 12;
    const ERROR_LEN: usize = 30;

    /// `no_trunc` is the flag `--no-trunc`.
    pub(super) fn new(no_trunc: bool) -> Self {
        if no_trunc { Self::Full } else { Self::Short }
    }

    pub(super) fn id(self, id: &str) -> String {
        match self {
            Self::Short => id.chars().take(Self::ID_LEN).collect(),
            Self::Full => id.to_owned(),
        }
    }

    /// The name of an image. The digest is left out if the name has a tag too.
    pub(super) fn image(self, image: &str) -> &str {
        match self {
            Self::Short => image_name::shown(image),
            Self::Full => image,
        }
    }

    /// The error in quotes. Empty if there is no error.
    pub(super) fn error(self, error: &str) -> String {
        match self {
            _ if error.is_empty() => String::new(),
            Self::Short if error.chars().count() > Self::ERROR_LEN => {
                format!("\"{}…\"", error.chars().take(Self::ERROR_LEN - 1).collect::<String>())
            }
            _ => format!("\"{error}\""),
        }
    }
}

/// Makes the first letter a capital letter: `ready` becomes `Ready`.
pub(super) fn capitalize(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// The age of an RFC 3339 time, such as `5 minutes ago`. Empty if the text is not such a time.
pub(super) fn time_ago(time: &str) -> String {
    let Ok(time) = time.parse::<Timestamp>() else { return String::new() };
    let age = Timestamp::now().duration_since(time);
    format!("{} ago", human_duration(u64::try_from(age.as_secs()).unwrap_or(0)))
}

/// A number of seconds in words, as the docker client prints it (docker/go-units, `HumanDuration`).
pub(super) fn human_duration(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1_800) / 3_600);
    match (seconds, minutes, hours) {
        (0, _, _) => "Less than a second".to_owned(),
        (1, _, _) => "1 second".to_owned(),
        (2..60, _, _) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, 2..60, _) => format!("{minutes} minutes"),
        (_, _, 1) => "About an hour".to_owned(),
        (_, _, 2..48) => format!("{hours} hours"),
        (_, _, 48..336) => format!("{} days", hours / 24),
        (_, _, 336..1_440) => format!("{} weeks", hours / 24 / 7),
        (_, _, 1_440..17_520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// A number of bytes with a binary unit, such as `1.5GiB`.
pub(super) fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    let digits = format!("{value:.3}");
    format!("{}{}", digits.trim_end_matches('0').trim_end_matches('.'), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_errors_and_ids_are_shortened() {
        assert_eq!(Truncation::Short.error(""), "");
        assert_eq!(Truncation::Short.error("short"), "\"short\"");
        assert_eq!(Truncation::Short.error(&"x".repeat(40)).chars().count(), Truncation::ERROR_LEN + 2);
        assert_eq!(Truncation::Full.error(&"x".repeat(40)).chars().count(), 42);
        assert_eq!(Truncation::Short.id(&"x".repeat(25)).len(), 12);
        assert_eq!(Truncation::Full.id(&"x".repeat(25)).len(), 25);
    }

    #[test]
    fn formats_the_age_of_a_time() {
        let five_minutes_ago = Timestamp::now() - jiff::SignedDuration::from_secs(300);
        assert_eq!(time_ago(&five_minutes_ago.to_string()), "5 minutes ago");
        assert_eq!(time_ago("2999-01-01T00:00:00Z"), "Less than a second ago");
        assert_eq!(time_ago("never"), "");
    }

    #[test]
    fn formats_durations_as_the_docker_client_does() {
        for (seconds, words) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3_600, "About an hour"),
            (2 * 3_600, "2 hours"),
            (3 * 86_400, "3 days"),
            (20 * 86_400, "2 weeks"),
            (90 * 86_400, "3 months"),
            (800 * 86_400, "2 years"),
        ] {
            assert_eq!(human_duration(seconds), words, "{seconds}");
        }
    }

    #[test]
    fn formats_sizes_with_binary_units() {
        assert_eq!(human_size(512), "512B");
        assert_eq!(human_size(3 << 29), "1.5GiB");
    }
}
