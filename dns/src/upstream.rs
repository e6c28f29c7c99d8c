//! An upstream resolver, as the flag `--dns-upstream` and `/etc/resolv.conf` give it. Pure.
//!
//! The daemon parses it, and [`crate::Outside`] asks it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use rustls::pki_types::ServerName;

/// The port of DNS servers (RFC 1035, section 4.2).
const DNS_PORT: u16 = 53;
/// The port of DNS over TLS (RFC 7858, section 3.1).
const TLS_PORT: u16 = 853;
/// The beginning of an upstream resolver that is asked over TLS.
const TLS_SCHEME: &str = "tls://";

/// A resolver for names outside of the cluster.
///
/// ```
/// use weft_dns::Upstream;
///
/// // Asked by UDP, and by TCP if a reply is too long.
/// let plain: Upstream = "192.0.2.53".parse()?;
/// assert_eq!(plain.to_string(), "192.0.2.53:53");
///
/// // Asked over TLS. Its certificate must be for the name after `#`.
/// let tls: Upstream = "tls://[2001:db8::53]#dns.example.test".parse()?;
/// assert_eq!(tls.to_string(), "tls://[2001:db8::53]:853#dns.example.test");
/// # Ok::<(), weft_dns::ParseUpstreamError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Upstream {
    pub(crate) address: SocketAddr,
    /// The name in the certificate of a resolver that is asked over TLS. `None`: it is asked by UDP
    /// and TCP.
    pub(crate) tls_name: Option<Arc<str>>,
}

/// The text is not an upstream resolver.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a resolver: give an address like 192.0.2.53, 192.0.2.53:53 or [2001:db8::53]:53, or for DNS over TLS \
     an address with the name in its certificate, like tls://192.0.2.53#dns.example.test"
)]
pub struct ParseUpstreamError(String);

impl From<IpAddr> for Upstream {
    fn from(address: IpAddr) -> Self {
        Self { address: SocketAddr::new(address, DNS_PORT), tls_name: None }
    }
}

impl FromStr for Upstream {
    type Err = ParseUpstreamError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = match text.strip_prefix(TLS_SCHEME) {
            Some(rest) => rest.split_once('#').and_then(|(address, name)| {
                let name = ServerName::try_from(name).ok().map(|_| Arc::from(name))?;
                Some(Self { address: parse_address(address, TLS_PORT)?, tls_name: Some(name) })
            }),
            None => parse_address(text, DNS_PORT).map(|address| Self { address, tls_name: None }),
        };
        parsed.ok_or_else(|| ParseUpstreamError(text.to_owned()))
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tls_name {
            None => write!(f, "{}", self.address),
            Some(name) => write!(f, "{TLS_SCHEME}{}#{name}", self.address),
        }
    }
}

/// Parses an address with or without a port. An IPv6 address without a port may have brackets.
fn parse_address(text: &str, default_port: u16) -> Option<SocketAddr> {
    let without_brackets = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = without_brackets.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, default_port));
    address.or_else(|_| text.parse()).ok().filter(|address| address.port() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &str) {
        let upstream: Upstream = text.parse().expect("a valid upstream resolver");
        assert_eq!(upstream.to_string(), want);
        assert_eq!(want.parse(), Ok(upstream), "the text of an upstream resolver is the same resolver");
    }

    #[test]
    fn an_address_needs_no_port() {
        check("192.0.2.53", "192.0.2.53:53");
        check("192.0.2.53:5353", "192.0.2.53:5353");
        check("2001:db8::53", "[2001:db8::53]:53");
        check("[2001:db8::53]", "[2001:db8::53]:53");
        check("[2001:db8::53]:5353", "[2001:db8::53]:5353");
        check("tls://192.0.2.53#dns.example.test", "tls://192.0.2.53:853#dns.example.test");
        check("tls://[2001:db8::53]:8853#192.0.2.1", "tls://[2001:db8::53]:8853#192.0.2.1");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in
            ["", "resolver", "192.0.2.53:0", "192.0.2.53#name", "tls://192.0.2.53", "tls://192.0.2.53#", "tls://x#y"]
        {
            let error = text.parse::<Upstream>().expect_err(text).to_string();
            assert!(error.contains("tls://192.0.2.53#dns.example.test"), "{error}");
        }
    }
}
