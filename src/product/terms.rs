//! Cuts text into search words: as spaces do it where a script has them, elsewhere into pairs of
//! characters.
//!
//! Invariants: what is stored and what is asked goes through one [`fold`], so that the forms of a
//! letter are one letter; every word that [`query`] asks for is one that [`index`] would have written
//! for a text that contains it, or the beginning of one. A character begins at most one word, so a
//! text has no more words than characters.
//!
//! Of a run of characters without spaces each pair is a word, and the last character alone. A single
//! character is found as the beginning of a pair: with all single ones written as well, the table had
//! twice the rows, and none was found that is not found so.

use std::collections::BTreeSet;

use icu_normalizer::properties::CanonicalCombiningClassMapBorrowed;
use icu_normalizer::{ComposingNormalizerBorrowed, DecomposingNormalizerBorrowed};

/// Longer words are cut.
const WORD_CHARS_MAX: usize = 40;
/// Words of a product. Name, category and SKU come first and have a few hundred at most; the rest is
/// more than the longest description has characters.
const WORDS_MAX: usize = 12_000;
/// Words of one question. Each is a look into the index.
const ASKED_MAX: usize = 12;

/// A word that must occur.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asked {
    /// This one.
    Whole(String),
    /// One that begins so: it may still be being typed, or it is the half of a pair.
    Beginning(String),
}

impl Asked {
    /// The word, if it must occur as it is.
    pub(super) fn whole(&self) -> Option<&str> {
        match self {
            Asked::Whole(word) => Some(word),
            Asked::Beginning(_) => None,
        }
    }
}

/// Scripts that are written without spaces between words, and Hangul, whose particles stick to them.
fn is_unspaced(c: char) -> bool {
    matches!(c,
        '\u{0E00}'..='\u{0EFF}' // Thai, Lao
        | '\u{1000}'..='\u{109F}' // Burmese
        | '\u{1780}'..='\u{17FF}' // Khmer
        | '\u{3005}'..='\u{3007}' | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}'
        | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}' // Han
        | '\u{3040}'..='\u{312F}' | '\u{31F0}'..='\u{31FF}' // kana, bopomofo
        | '\u{AC00}'..='\u{D7AF}')
}

/// Accents above, below and through a letter, and the points of Hebrew and Arabic, which are written
/// or left out. Marks of other classes make another letter: a voiced kana, a vowel of Hindi or Thai.
fn is_accent(class: u8) -> bool {
    matches!(class, 10..=36 | 200..)
}

/// Characters without a width of their own, which a text carries unseen.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{AD}' | '\u{34F}' | '\u{61C}' | '\u{180B}'..='\u{180F}' | '\u{200C}'..='\u{200F}'
        | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}'
        | '\u{E0000}'..='\u{E0FFF}')
}

/// One form for all forms of a letter: width (ＵＳＢ, ﾃﾚﾋﾞ), composition, case (ß as ss), accents.
fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let classes = CanonicalCombiningClassMapBorrowed::new();
    let mut folded = String::with_capacity(text.len());
    // Else these would grow into the word before them.
    let separate = |c| if matches!(c, '™' | '℠') { ' ' } else { c };
    let apart = DecomposingNormalizerBorrowed::new_nfkd();
    for c in apart.normalize_iter(text.chars().map(separate)) {
        if c.is_ascii() {
            folded.push(c.to_ascii_lowercase());
        } else if !is_accent(classes.get_u8(c)) && !is_invisible(c) {
            fold_case(c, &mut folded);
        }
    }
    // Hangul and voiced kana are single characters again.
    let composed = ComposingNormalizerBorrowed::new_nfc().normalize(&folded);
    composed.into_owned()
}

/// Capitals of small letters are few, and the small letters of those are Unicode's full case folding:
/// ß over SS, ς over Σ, ı over I. Strokes and ligatures that Unicode takes for letters are added.
fn fold_case(c: char, folded: &mut String) {
    let small = c.to_lowercase().flat_map(char::to_uppercase);
    for c in small.flat_map(char::to_lowercase) {
        match c {
            'ø' => folded.push('o'),
            'ł' => folded.push('l'),
            'đ' => folded.push('d'),
            'ħ' => folded.push('h'),
            'æ' => folded.push_str("ae"),
            'œ' => folded.push_str("oe"),
            c => folded.push(c),
        }
    }
}

/// Letters and digits that stand together, and whether they have spaces between words; a run ends
/// where the script changes in that. A mark belongs to the letter before it.
fn runs(folded: &str) -> Vec<(bool, Vec<char>)> {
    let classes = CanonicalCombiningClassMapBorrowed::new();
    let mut runs: Vec<(bool, Vec<char>)> = Vec::new();
    let mut open = false;
    for c in folded.chars() {
        let is_letter = c.is_alphanumeric();
        if !is_letter && (!open || classes.get_u8(c) == 0) {
            open = false;
            continue;
        }
        let unspaced = is_unspaced(c);
        match runs.last_mut() {
            Some((script, run)) if open && (!is_letter || *script == unspaced) => run.push(c),
            _ => runs.push((unspaced, vec![c])),
        }
        open = true;
    }
    runs
}

fn word(run: &[char]) -> String {
    run.iter().take(WORD_CHARS_MAX).collect()
}

/// The words under which the texts are found. What has no room is of the last text.
pub(super) fn index<'a>(texts: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for text in texts {
        for (unspaced, run) in runs(&fold(text)) {
            if unspaced {
                for at in 0..run.len() {
                    words.insert(run[at..].iter().take(2).collect());
                    if words.len() >= WORDS_MAX {
                        return words;
                    }
                }
            } else {
                words.insert(word(&run));
                if words.len() >= WORDS_MAX {
                    return words;
                }
            }
        }
    }
    words
}

/// Words that must all occur, ready to be looked for in many texts. What it finds is what [`index`] and
/// [`query`] together mean, without the index.
pub(super) struct Wanted(Vec<(bool, Vec<char>)>);

impl Wanted {
    pub(super) fn new<'a>(asked: impl IntoIterator<Item = &'a Asked>) -> Self {
        let cut = |asked: &Asked| match asked {
            Asked::Whole(word) => (true, word.chars().collect()),
            Asked::Beginning(word) => (false, word.chars().collect()),
        };
        Self(asked.into_iter().map(cut).collect())
    }

    /// Whether no word is looked for.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the texts have all of them, and how many bytes of text were read to know.
    pub(super) fn are_in<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> (bool, usize) {
        let mut missing: Vec<&(bool, Vec<char>)> = self.0.iter().collect();
        let mut bytes = 0;
        for text in texts {
            if missing.is_empty() {
                break;
            }
            bytes += text.len();
            for (unspaced, run) in runs(&fold(text)) {
                let (words, chars_max) = match unspaced {
                    true => (run.len(), 2),
                    false => (1, WORD_CHARS_MAX),
                };
                for word in (0..words).map(|at| &run[at..run.len().min(at + chars_max)]) {
                    missing.retain(|(is_whole, wanted)| match is_whole {
                        true => word != wanted.as_slice(),
                        false => !word.starts_with(wanted),
                    });
                }
            }
        }
        (missing.is_empty(), bytes)
    }
}

/// The words that must all occur. The last word may still be being typed: its beginning suffices.
pub(super) fn query(text: &str) -> Vec<Asked> {
    asked(&runs(&fold(text)))
}

fn asked(runs: &[(bool, Vec<char>)]) -> Vec<Asked> {
    let mut asked = cut(runs, 1);
    if asked.len() > ASKED_MAX {
        // Each second pair has every character too, and leaves room for what comes after them.
        asked = cut(runs, 2);
        asked.truncate(ASKED_MAX);
    }
    asked
}

/// Takes of a run without spaces each `step`th pair, and the last.
fn cut(runs: &[(bool, Vec<char>)], step: usize) -> Vec<Asked> {
    let mut all: Vec<Asked> = Vec::new();
    for (at, (unspaced, run)) in runs.iter().enumerate() {
        match (unspaced, run.as_slice()) {
            (true, [_, _, ..]) => {
                let last = run.len() - 2;
                let places = (0..last).step_by(step).chain([last]);
                all.extend(places.map(|at| Asked::Whole(run[at..at + 2].iter().collect())));
            }
            (false, run) if at + 1 < runs.len() => all.push(Asked::Whole(word(run))),
            (_, run) => all.push(Asked::Beginning(word(run))),
        }
    }
    let mut seen = BTreeSet::new();
    all.retain(|asked| seen.insert(asked.clone()));
    all
}

/// The rule of the first version: no folding but small letters, Han, kana and Hangul in single
/// characters and pairs, 200 words a product. What it wrote is there until
/// [`super::reindex`] has been over it.
pub(super) mod first {
    use super::{Asked, BTreeSet, WORD_CHARS_MAX};

    const WORDS_MAX: usize = 200;

    fn is_cjk(c: char) -> bool {
        matches!(c, '\u{3040}'..='\u{30FF}' | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '\u{AC00}'..='\u{D7AF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{2FFFF}')
    }

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

    /// What it wrote for these texts.
    pub(in super::super) fn index<'a>(
        texts: impl IntoIterator<Item = &'a str>,
    ) -> BTreeSet<String> {
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

    /// What it asked for.
    pub(in super::super) fn query(text: &str) -> Vec<Asked> {
        super::asked(&runs(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn finds(stored: &str, q: &str) -> bool {
        let words = index([stored]);
        let asked = query(q);
        !asked.is_empty()
            && asked.iter().all(|asked| match asked {
                Asked::Whole(word) => words.contains(word),
                Asked::Beginning(word) => words.iter().any(|known| known.starts_with(word)),
            })
    }

    #[test]
    fn english_and_chinese_are_cut_apart() {
        let words = index(["Aurora Wireless耳机 X2"]);
        let expected = ["aurora", "wireless", "x2", "机", "耳机"];
        assert_eq!(Vec::from_iter(&words), expected);
        for q in ["耳", "机", "耳机", "aur", "Aurora 耳", "wireless x"] {
            assert!(finds("Aurora Wireless耳机 X2", q), "{q}");
        }
        for q in ["auro wireless", "机耳", "rora"] {
            assert!(!finds("Aurora Wireless耳机 X2", q), "{q}");
        }
        assert!(query("  !? ™").is_empty());
    }

    #[test]
    fn the_forms_of_a_letter_are_one_letter() {
        for same in [
            &["ＵＳＢ－Ｃ", "USB-C", "usb c", "ｕｓｂ c"][..],
            &["１５", "15", "①⑤", "¹⁵"],
            &[
                "ﾜｲﾔﾚｽ ｶﾞｼﾞｪｯﾄ",
                "ワイヤレス ガジェット",
                "ワイヤレス カ\u{3099}シ\u{3099}ェット",
            ],
            &["café", "cafe\u{301}", "CAFÉ", "Cafe"],
            &["Straße", "STRASSE", "strasse", "STRAẞE"],
            &[
                "İstanbul",
                "istanbul",
                "ISTANBUL",
                "i\u{307}stanbul",
                "ıstanbul",
            ],
            &["ΣΊΣΥΦΟΣ", "σίσυφος", "σισυφοσ"],
            &["Ёлка", "елка", "ЕЛКА"],
            &["한국어", "\u{1112}\u{1161}\u{11ab}국어"],
            &["Smørrebrød", "smorrebrod"],
            &["Łódź", "lodz"],
            &["crème brûlée", "creme brulee"],
            &["Phở Việt", "pho viet"],
            &["ﬁle", "file"],
            &["5㎏", "5kg"],
            &["wire\u{AD}less", "wireless", "wire\u{2060}less"],
            &["أحمد", "احمد", "أَحْمَد"],
        ] {
            for (stored, q) in same.iter().flat_map(|a| same.iter().map(move |b| (a, b))) {
                assert_eq!(index([*stored]), index([*q]), "{stored} {q}");
                assert!(finds(stored, q), "{q} in {stored}");
            }
        }
        // Letters of their own stay apart.
        for (stored, q) in [("ガス", "カス"), ("की", "का"), ("ที่", "ทุ")] {
            assert!(!finds(stored, q), "{q} in {stored}");
        }
        assert!(finds("Aurora™ Lamp", "aurora lamp"));
    }

    #[test]
    fn beginnings_are_found_in_every_alphabet() {
        for (stored, q) in [
            ("Škoda Ёлочка", "ёло"),
            ("Σίσυφος", "σισ"),
            ("Écharpe", "éch"),
            ("שלום", "של"),
            ("مرحبا", "مرح"),
            ("नमस्ते", "नम"),
            ("ภาษาไทย", "ไทย"),
            ("蓝牙耳机", "耳"),
            ("한국어", "한"),
        ] {
            assert!(finds(stored, q), "{q} in {stored}");
        }
    }

    #[test]
    fn the_longest_description_is_found_to_its_end_and_the_name_whatever_it_says() {
        let different = |from: u32, count: u32| -> String {
            (0..count)
                .map(|at| char::from_u32(0x4E00 + (from + at) % 20_000).expect("a character"))
                .collect()
        };
        let (name, description) = (different(0, 200), different(1_000, 10_000));
        let words = index([name.as_str(), "配件", "SKU-1", description.as_str()]);
        let last: String = description.chars().skip(9_998).collect();
        for word in [last.as_str(), "配件", "sku", "1"] {
            assert!(words.contains(word), "{word}");
        }
        assert!(
            words.len() <= 10_210,
            "one for each character: {}",
            words.len()
        );
        // The longest that a text can grow by folding.
        let grown = "\u{FDFA}".repeat(364);
        let rest: String = (0..10_000).map(|at| format!("w{at} ")).collect();
        let words = index([grown.as_str(), "配件", rest.as_str()]);
        assert!(words.contains("配件") && words.len() <= WORDS_MAX);
    }

    #[test]
    fn a_long_question_keeps_what_comes_last() {
        let text = "无线蓝牙降噪耳机充电宝便携音箱 Sony";
        let asked = query(text);
        assert!(asked.len() <= ASKED_MAX);
        assert_eq!(asked.last(), Some(&Asked::Beginning("sony".to_owned())));
        assert!(finds(text, text));
        assert_eq!(query("蓝牙 蓝牙"), [Asked::Whole("蓝牙".to_owned())]);
        let words: Vec<String> = (0..20).map(|at| format!("w{at}")).collect();
        let asked = query(&words.join(" "));
        assert_eq!(asked.len(), ASKED_MAX);
        assert!(asked.iter().all(|asked| matches!(asked, Asked::Whole(_))));
    }

    proptest! {
        #[test]
        fn a_text_has_what_the_index_has(text in "[aAbéß 1耳机カ゛ไท]{0,40}", q in "[aAbéß 1耳机カ゛ไท]{1,6}") {
            let asked = query(&q);
            let halves = text.char_indices().nth(text.chars().count() / 2);
            let (first, second) = text.split_at(halves.map_or(0, |(at, _)| at));
            let words = index([first, second]);
            let by_index = asked.iter().all(|asked| match asked {
                Asked::Whole(word) => words.contains(word),
                Asked::Beginning(word) => words.iter().any(|known| known.starts_with(word)),
            });
            prop_assert_eq!(Wanted::new(&asked).are_in([first, second]).0, by_index, "{:?}", asked);
        }

        #[test]
        fn every_text_is_found_by_itself_and_in_each_of_its_forms(text in "\\PC{0,60}") {
            let asked = query(&text);
            prop_assert!(asked.len() <= ASKED_MAX);
            prop_assert!(asked.is_empty() || finds(&text, &text), "{text:?}");
            let apart = DecomposingNormalizerBorrowed::new_nfd().normalize(&text).into_owned();
            let composed = ComposingNormalizerBorrowed::new_nfc().normalize(&text).into_owned();
            prop_assert_eq!(index([apart.as_str()]), index([composed.as_str()]));
            prop_assert_eq!(index([text.as_str()]), index([composed.as_str()]));
        }
    }
}
