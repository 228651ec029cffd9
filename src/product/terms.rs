//! Cuts text into search words: Latin words as they are, Chinese in single characters and pairs.
//!
//! Invariant: every word that [`query`] asks for is one that [`index`] would have written for a
//! text that contains it.

use std::collections::BTreeSet;

/// Longer words are cut; longer texts are indexed up to this many words.
const WORD_CHARS_MAX: usize = 40;
const WORDS_MAX: usize = 200;

/// Han, kana and hangul: scripts that are written without spaces.
fn is_cjk(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30FF}' | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '\u{AC00}'..='\u{D7AF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{2FFFF}')
}

/// Runs of letters and digits in lower case; a run changes where the script does.
fn runs(text: &str) -> Vec<(bool, Vec<char>)> {
    let mut runs: Vec<(bool, Vec<char>)> = Vec::new();
    let mut open = false;
    for c in text.chars().flat_map(char::to_lowercase) {
        if !c.is_alphanumeric() {
            open = false;
            continue;
        }
        let cjk = is_cjk(c);
        match runs.last_mut() {
            Some((script, run)) if open && *script == cjk => run.push(c),
            _ => runs.push((cjk, vec![c])),
        }
        open = true;
    }
    runs
}

/// The words under which the texts are found.
pub(super) fn index<'a>(texts: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for text in texts {
        for (cjk, run) in runs(text) {
            let cut: Vec<String> = if cjk {
                let singles = run.iter().map(char::to_string);
                let pairs = run.windows(2).map(|pair| pair.iter().collect());
                singles.chain(pairs).take(WORDS_MAX).collect()
            } else {
                vec![run.into_iter().take(WORD_CHARS_MAX).collect()]
            };
            for word in cut {
                if words.len() >= WORDS_MAX {
                    return words;
                }
                words.insert(word);
            }
        }
    }
    words
}

/// The words that must all occur; pairs where there are pairs, for they are rarer.
pub(super) fn query(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for (cjk, run) in runs(text) {
        if cjk && run.len() > 1 {
            words.extend(run.windows(2).map(|pair| pair.iter().collect::<String>()));
        } else {
            words.push(run.into_iter().take(WORD_CHARS_MAX).collect());
        }
    }
    let mut seen = BTreeSet::new();
    words.retain(|word| seen.insert(word.clone()));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn english_and_chinese_are_cut_apart() {
        let words = index(["Aurora Wireless耳机 X2"]);
        for word in ["aurora", "wireless", "耳", "机", "耳机", "x2"] {
            assert!(words.contains(word), "{word} in {words:?}");
        }
    }

    #[test]
    fn every_asked_word_is_an_indexed_one() {
        let text = "Café 无线蓝牙耳机 USB-C 10000mAh";
        let words = index([text]);
        for word in query(text) {
            assert!(words.contains(&word), "{word}");
        }
        assert_eq!(query("蓝牙 蓝牙"), ["蓝牙"]);
        assert!(query("  !? ").is_empty());
    }
}
