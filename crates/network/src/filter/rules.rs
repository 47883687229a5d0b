//! The rules of a packet filter, and the TOML that they are written in.

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use backend::MacAddress;
use serde::de::{self, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use crate::headers::protocol;

/// The most rules of a file.
const MAX_RULES: usize = 4096;

/// What is wrong with a file of rules, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulesError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for RulesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

impl std::error::Error for RulesError {}

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the guest.
    Out,
    /// To the guest.
    In,
}

/// Whether a frame of the same flow was allowed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowState {
    /// None was.
    New,
    /// One was, in either direction.
    Established,
}

/// What happens to frames that no rule is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fallback {
    /// They pass.
    #[default]
    Allow,
    /// They do not.
    Drop,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The frame passes.
    Allow,
    /// It does not.
    Drop,
    /// It does not, and its sender is told: by a reset, or an ICMP error.
    Reject,
    /// It passes while the rule's rate is kept.
    RateLimit,
    /// It passes with other addresses, and answers come back with the old ones.
    Rewrite,
}

/// A network: addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no address or network such as 192.0.2.0/24");
        let (address, bits) = text.split_once('/').map_or((&*text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.parse().map_err(|_| wrong()))?;
        if bits > most { Err(wrong()) } else { Ok(Self { address, bits }) }
    }
}

impl Network {
    /// Whether `address` is one of the network's.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(v4)) => {
                let differs = net.to_bits() ^ v4.to_bits();
                differs.checked_shr(32 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(v6)) => {
                let differs = net.to_bits() ^ v6.to_bits();
                differs.checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// A protocol above IP, or ARP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "NumberOrText")]
pub enum Protocol {
    /// Of an IP packet.
    Ip(u8),
    /// ARP.
    Arp,
}

impl TryFrom<NumberOrText> for Protocol {
    type Error = String;

    fn try_from(value: NumberOrText) -> Result<Self, String> {
        Ok(match value {
            NumberOrText::Number(number) => {
                Self::Ip(number.try_into().map_err(|_| "protocols are from 0 to 255")?)
            }
            NumberOrText::Text(text) => match text.as_str() {
                "tcp" => Self::Ip(protocol::TCP),
                "udp" => Self::Ip(protocol::UDP),
                "icmp" => Self::Ip(protocol::ICMP),
                "icmpv6" => Self::Ip(protocol::ICMPV6),
                "arp" => Self::Arp,
                _ => return Err("there are tcp, udp, icmp, icmpv6, arp, and numbers".to_owned()),
            },
        })
    }
}

/// A port, or a range of them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "NumberOrText")]
pub struct Ports(pub RangeInclusive<u16>);

impl TryFrom<NumberOrText> for Ports {
    type Error = String;

    fn try_from(value: NumberOrText) -> Result<Self, String> {
        let wrong = || "ports are from 0 to 65535, or a range such as \"8000-8100\"".to_owned();
        let range = match &value {
            NumberOrText::Number(port) => {
                let port = (*port).try_into().map_err(|_| wrong())?;
                port..=port
            }
            NumberOrText::Text(text) => {
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                let port = |text: &str| text.trim().parse().map_err(|_| wrong());
                port(first)?..=port(last)?
            }
        };
        if range.is_empty() { Err(wrong()) } else { Ok(Self(range)) }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a number or a text")]
enum NumberOrText {
    Number(i64),
    Text(String),
}

/// Bytes per second: a number, or one with K, M or G (binary) behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "NumberOrText")]
pub struct Amount(pub u64);

impl TryFrom<NumberOrText> for Amount {
    type Error = String;

    fn try_from(value: NumberOrText) -> Result<Self, String> {
        let wrong = || "an amount is a number of bytes, or one such as \"10M\"".to_owned();
        let amount = match value {
            NumberOrText::Number(number) => u64::try_from(number).ok(),
            NumberOrText::Text(text) => {
                let (number, shift) = match text.chars().last() {
                    Some('K') => (&text[..text.len() - 1], 10),
                    Some('M') => (&text[..text.len() - 1], 20),
                    Some('G') => (&text[..text.len() - 1], 30),
                    _ => (&*text, 0),
                };
                number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift))
            }
        };
        amount.filter(|amount| (1..1 << 50).contains(amount)).map(Self).ok_or_else(wrong)
    }
}

/// Reads one value, or a list of them.
fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct OneOrMany<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a value or a list of values")
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<Vec<T>, E> {
            T::deserialize(value.into_deserializer()).map(|one| vec![one])
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<Vec<T>, E> {
            T::deserialize(value.into_deserializer()).map(|one| vec![one])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(value) = values.next_element()? {
                all.push(value);
            }
            Ok(all)
        }
    }

    deserializer.deserialize_any(OneOrMany(PhantomData))
}

/// New addresses of a frame; what is not given stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rewrite {
    /// Source address, of the same family.
    pub source: Option<IpAddr>,
    /// Destination address, of the same family.
    pub destination: Option<IpAddr>,
    /// Source port, of TCP and UDP.
    pub source_port: Option<u16>,
    /// Destination port, of TCP and UDP.
    pub destination_port: Option<u16>,
}

/// A rule: a pattern, of which all that is given has to fit, and an action.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rule {
    /// Name, for counters.
    pub name: Option<String>,
    /// Which way.
    pub direction: Option<Direction>,
    /// Protocol above IP, or ARP.
    #[serde(default, deserialize_with = "list")]
    pub protocol: Vec<Protocol>,
    /// Source addresses.
    #[serde(default, deserialize_with = "list")]
    pub source: Vec<Network>,
    /// Destination addresses.
    #[serde(default, deserialize_with = "list")]
    pub destination: Vec<Network>,
    /// Source ports.
    #[serde(default, deserialize_with = "list")]
    pub source_port: Vec<Ports>,
    /// Destination ports.
    #[serde(default, deserialize_with = "list")]
    pub destination_port: Vec<Ports>,
    /// Source Ethernet addresses.
    #[serde(default, deserialize_with = "list")]
    pub source_mac: Vec<MacAddress>,
    /// Destination Ethernet addresses.
    #[serde(default, deserialize_with = "list")]
    pub destination_mac: Vec<MacAddress>,
    /// Whether the flow was allowed before.
    pub state: Option<FlowState>,
    /// What happens.
    pub action: Action,
    /// Bytes per second, of `rate-limit`.
    pub rate: Option<Amount>,
    /// Bytes beyond the rate that may come at once, of `rate-limit`.
    pub burst: Option<Amount>,
    /// New addresses, of `rewrite`.
    pub rewrite: Option<Rewrite>,
}

/// All rules, in order: the first whose pattern fits decides.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rules {
    /// What happens to frames that no rule is about.
    #[serde(default)]
    pub default: Fallback,
    /// Whether frames of the guest with other sources than its own are dropped before any rule.
    #[serde(default = "yes")]
    pub anti_spoofing: bool,
    /// The rules.
    #[serde(default, rename = "rule")]
    pub rules: Vec<Spanned<Rule>>,
}

fn yes() -> bool {
    true
}

impl Default for Rules {
    fn default() -> Self {
        Self { default: Fallback::Allow, anti_spoofing: true, rules: Vec::new() }
    }
}

impl Rules {
    /// Reads rules.
    ///
    /// # Errors
    /// [`RulesError`] for the first thing that is wrong.
    ///
    /// ```
    /// use network::Rules;
    /// let error = Rules::parse("[[rule]]\naction = \"explode\"").unwrap_err();
    /// assert_eq!((error.line, error.column), (2, 10));
    /// ```
    pub fn parse(text: &str) -> Result<Self, RulesError> {
        let rules: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            error_at(text, at, error.message().trim_end().replace('\n', "; "))
        })?;
        let wrong = |rule: &Spanned<Rule>, message: &str| {
            Err(error_at(text, rule.span().start, message.to_owned()))
        };
        for (index, rule) in rules.rules.iter().enumerate() {
            if index >= MAX_RULES {
                return wrong(rule, &format!("there are more than {MAX_RULES} rules"));
            }
            if let Some(message) = rule.get_ref().contradiction() {
                return wrong(rule, message);
            }
        }
        Ok(rules)
    }
}

impl Rule {
    /// What does not fit together.
    fn contradiction(&self) -> Option<&'static str> {
        let limits = self.action == Action::RateLimit;
        if limits != self.rate.is_some() {
            return Some("`rate-limit` needs a rate, and other actions have none");
        }
        if self.burst.is_some() && !limits {
            return Some("only `rate-limit` has a burst");
        }
        if (self.action == Action::Rewrite) != self.rewrite.is_some() {
            return Some("`rewrite` needs a table `rewrite`, and other actions have none");
        }
        None
    }
}

fn error_at(text: &str, at: usize, message: String) -> RulesError {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    RulesError { line, column, message }
}
