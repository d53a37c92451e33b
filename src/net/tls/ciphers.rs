#![forbid(unsafe_code)]
//! `ssl_ciphers`: OpenSSL's language for cipher lists, as far as it speaks of suites that are still
//! worth having. As in OpenSSL it is about TLS 1.2; the suites of TLS 1.3 are always there.

use rustls::SupportedCipherSuite;
use rustls::crypto::ring::{ALL_CIPHER_SUITES, cipher_suite};

/// The suites of TLS 1.2, by OpenSSL's name.
const SUITES: [(&str, SupportedCipherSuite); 6] = [
    (
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "ECDHE-RSA-AES256-GCM-SHA384",
        cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "ECDHE-RSA-AES128-GCM-SHA256",
        cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "ECDHE-RSA-CHACHA20-POLY1305",
        cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
];

/// Words for all of them.
const ANY: [&str; 8] = [
    "ALL", "DEFAULT", "HIGH", "ECDHE", "EECDH", "kECDHE", "kEECDH", "TLSv1.2",
];

/// The suites that a list allows; all of them without one.
///
/// # Errors
/// It allows none of TLS 1.2: a message for the user.
pub fn suites(list: Option<&str>) -> Result<Vec<SupportedCipherSuite>, String> {
    let Some(list) = list else {
        return Ok(ALL_CIPHER_SUITES.to_vec());
    };
    let mut chosen: Vec<usize> = Vec::new();
    let mut banned = [false; SUITES.len()];
    for word in list
        .split([':', ',', ' ', ';'])
        .filter(|word| !word.is_empty())
    {
        // "@STRENGTH" and the like order and bound what is strong enough here anyway.
        let (sign, words) = match word.as_bytes()[0] {
            b'@' | b'+' => continue,
            sign @ (b'!' | b'-') => (sign, &word[1..]),
            _ => (b' ', word),
        };
        for (place, (name, _)) in SUITES.iter().enumerate() {
            if !words.split('+').all(|word| means(word, name)) {
                continue;
            }
            if sign != b' ' {
                chosen.retain(|&other| other != place);
                banned[place] |= sign == b'!';
            } else if !banned[place] && !chosen.contains(&place) {
                chosen.push(place);
            }
        }
    }
    if chosen.is_empty() {
        let names: Vec<&str> = SUITES.iter().map(|(name, _)| *name).collect();
        return Err(format!(
            "Error setting the provided cipher(s): {list}\nThere are: {}",
            names.join(":")
        ));
    }
    let newest = ALL_CIPHER_SUITES
        .iter()
        .filter(|suite| suite.tls13().is_some());
    let chosen = chosen.iter().map(|&place| &SUITES[place].1);
    Ok(newest.chain(chosen).copied().collect())
}

/// Whether a word of a list names this suite.
fn means(word: &str, suite: &str) -> bool {
    let has = |part: &str| suite.split('-').any(|other| other.starts_with(part));
    match word {
        _ if word == suite || ANY.contains(&word) => true,
        "AES" | "AES128" | "AES256" | "CHACHA20" => has(word),
        "AESGCM" => has("GCM"),
        "ECDSA" | "aECDSA" => has("ECDSA"),
        "aRSA" => has("RSA"),
        "SHA256" | "SHA384" => has(word),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(list: &str) -> Vec<&'static str> {
        let Ok(suites) = suites(Some(list)) else {
            return Vec::new();
        };
        suites
            .iter()
            .filter_map(|suite| SUITES.iter().find(|(_, other)| other == suite))
            .map(|(name, _)| *name)
            .collect()
    }

    #[test]
    fn lists_choose() {
        assert_eq!(chosen("HIGH:!aNULL:!MD5:@STRENGTH").len(), 6);
        assert_eq!(chosen("ECDHE+AESGCM").len(), 4);
        assert_eq!(
            chosen("ECDHE-RSA-AES128-GCM-SHA256:AES128-SHA"),
            ["ECDHE-RSA-AES128-GCM-SHA256"]
        );
        assert_eq!(
            chosen("ALL:!ECDSA:!AES,CHACHA20"),
            ["ECDHE-RSA-CHACHA20-POLY1305"]
        );
        assert_eq!(
            chosen("AES256:-AES256:AES256+aRSA"),
            ["ECDHE-RSA-AES256-GCM-SHA384"]
        );
        let newest = suites(Some("AES128")).unwrap();
        assert!(newest.iter().any(|suite| suite.tls13().is_some()));
        assert_eq!(suites(None).unwrap().len(), ALL_CIPHER_SUITES.len());
    }

    #[test]
    fn a_list_that_leaves_nothing_is_refused() {
        for list in ["RC4-SHA", "ALL:!ALL", "TLS_AES_128_GCM_SHA256", ""] {
            let message = suites(Some(list)).unwrap_err();
            let expected =
                format!("Error setting the provided cipher(s): {list}\nThere are: ECDHE-");
            assert!(message.starts_with(&expected), "{message}");
        }
    }
}
