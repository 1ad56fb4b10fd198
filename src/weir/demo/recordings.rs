//! The recordings that sensors replay: built in, or from CSV files of the user's.
//!
//! Two kinds of file are understood, told apart by their header:
//! - a **motion** recording has six axes, in columns whose names begin with `ax ay az` and `gx gy gz` (or `wx wy wz`), as
//!   whole numbers in milli-g and milli-rad/s at 50 Hz, and may have a column `exercise` or `label`. Each file is one wearer,
//!   named after the file;
//! - a **series** has the header `timestamp,value`; its values become temperatures, one after another.
//!
//! Other columns are not read. Without motion files the wearers are the built-in ones, and without series the
//! temperatures are random walks.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Values in a row of a motion recording.
pub(super) const AXES: usize = 6;
const FILES_MAX: usize = 16;
const FILE_BYTES_MAX: u64 = 64 << 20;

const BUILT_IN: [(&str, &str); 3] = [
    ("subject8", include_str!("../../../models/recordings/watch_subject8.csv")),
    ("subject9", include_str!("../../../models/recordings/watch_subject9.csv")),
    ("subject10", include_str!("../../../models/recordings/watch_subject10.csv")),
];

/// What there is to replay.
#[derive(Debug, Clone)]
pub(super) struct Recordings {
    /// At least one.
    pub(super) motions: Vec<Motion>,
    /// Any number, none of them empty.
    pub(super) series: Vec<Vec<f64>>,
}

/// One wearer's recording.
#[derive(Debug, Clone)]
pub(super) struct Motion {
    /// The wearer, fit for a topic level.
    pub(super) wearer: String,
    /// Raw counts, `[ax, ay, az, gx, gy, gz]`.
    pub(super) rows: Vec<[i16; AXES]>,
    /// What the wearer did from a row on; empty if the file does not say.
    pub(super) exercises: Vec<(usize, String)>,
}

/// Why recordings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// A folder or file.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file is too long.
    #[error("{} has {len} bytes, more than the limit of {FILE_BYTES_MAX}", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
    /// Nothing in the folder is a recording.
    #[error("{} has no recordings: CSV files with columns ax ay az gx gy gz, or with the header `timestamp,value`", path.display())]
    None {
        /// The folder.
        path: PathBuf,
    },
    /// Too many files.
    #[error("{} has more than {FILES_MAX} CSV files", path.display())]
    TooMany {
        /// The folder.
        path: PathBuf,
    },
    /// A line of a recording.
    #[error("{} line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

impl Recordings {
    /// The built-in ones, or those in a folder.
    pub(super) fn load(folder: Option<&Path>) -> Result<Recordings, RecordingError> {
        let mut found = Recordings { motions: Vec::new(), series: Vec::new() };
        if let Some(folder) = folder {
            for path in csv_files(folder)? {
                found.add(&path)?;
            }
            if found.motions.is_empty() && found.series.is_empty() {
                return Err(RecordingError::None { path: folder.to_owned() });
            }
        }
        if found.motions.is_empty() {
            for (wearer, text) in BUILT_IN {
                let motion = parse_motion(wearer, text).map_err(|(line, reason)| RecordingError::Line {
                    path: PathBuf::from(wearer),
                    line,
                    reason,
                })?;
                found.motions.extend(motion);
            }
        }
        Ok(found)
    }

    fn add(&mut self, path: &Path) -> Result<(), RecordingError> {
        let read = |source| RecordingError::Read { path: path.to_owned(), source };
        let len = fs::metadata(path).map_err(read)?.len();
        if len > FILE_BYTES_MAX {
            return Err(RecordingError::TooLong { path: path.to_owned(), len });
        }
        let text = fs::read_to_string(path).map_err(read)?;
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("wearer");
        let wearer: String = stem
            .trim_start_matches("watch_")
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' })
            .collect();
        let at_line = |(line, reason)| RecordingError::Line { path: path.to_owned(), line, reason };
        self.motions.extend(parse_motion(&wearer, &text).map_err(at_line)?);
        self.series.extend(parse_series(&text).map_err(at_line)?);
        Ok(())
    }
}

impl Motion {
    /// What the wearer did from row `first` on for `count` rows; none if it changed or the file does not say.
    pub(super) fn exercise(&self, first: usize, count: usize) -> Option<&str> {
        let at = |row: usize| self.exercises.iter().rev().find(|(from, _)| *from <= row).map(|(_, name)| name.as_str());
        let (begin, end) = (first % self.rows.len(), (first + count - 1) % self.rows.len());
        let name = at(begin)?;
        (begin <= end && at(end) == Some(name)).then_some(name)
    }
}

fn csv_files(folder: &Path) -> Result<Vec<PathBuf>, RecordingError> {
    let read = |source| RecordingError::Read { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if path.extension().is_some_and(|extension| extension == "csv") {
            paths.push(path);
        }
    }
    if paths.len() > FILES_MAX {
        return Err(RecordingError::TooMany { path: folder.to_owned() });
    }
    // The order of a folder is not the same everywhere, and one seed gives one run.
    paths.sort();
    Ok(paths)
}

/// None if the header is not that of a motion recording.
fn parse_motion(wearer: &str, text: &str) -> Result<Option<Motion>, (usize, String)> {
    let mut lines = text.lines().enumerate();
    let header: Vec<&str> = lines.next().map(|(_, line)| line.split(',').map(str::trim).collect()).unwrap_or_default();
    let column = |prefixes: [&str; 2]| header.iter().position(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
    let names = [["ax", "ax"], ["ay", "ay"], ["az", "az"], ["gx", "wx"], ["gy", "wy"], ["gz", "wz"]];
    let columns: Vec<usize> = names.into_iter().filter_map(column).collect();
    if columns.len() != AXES {
        return Ok(None);
    }
    let exercise = column(["exercise", "label"]);
    let mut motion = Motion { wearer: wearer.to_owned(), rows: Vec::new(), exercises: Vec::new() };
    for (index, line) in lines {
        let cells: Vec<&str> = line.split(',').collect();
        let mut row = [0; AXES];
        for (value, &at) in row.iter_mut().zip(&columns) {
            let cell = cells.get(at).copied().unwrap_or_default().trim();
            *value = cell.parse().map_err(|_| (index + 1, format!("`{cell}` is not a whole number from -32768 to 32767")))?;
        }
        if let Some(name) = exercise.and_then(|at| cells.get(at))
            && motion.exercises.last().is_none_or(|(_, last)| last != name)
        {
            motion.exercises.push((motion.rows.len(), (*name).to_owned()));
        }
        motion.rows.push(row);
    }
    Ok(Some(motion).filter(|motion| !motion.rows.is_empty()))
}

/// None if the header is not that of a series.
fn parse_series(text: &str) -> Result<Option<Vec<f64>>, (usize, String)> {
    let mut lines = text.lines().enumerate();
    if lines.next().is_none_or(|(_, header)| header.trim() != "timestamp,value") {
        return Ok(None);
    }
    let mut values = Vec::new();
    for (index, line) in lines {
        let cell = line.rsplit(',').next().unwrap_or_default().trim();
        let value: f64 = cell.parse().map_err(|_| (index + 1, format!("`{cell}` is not a number")))?;
        if !value.is_finite() {
            return Err((index + 1, format!("`{cell}` is not a finite number")));
        }
        values.push(value);
    }
    Ok(Some(values).filter(|values| !values.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_recordings_are_three_wearers_with_seven_exercises() {
        let recordings = Recordings::load(None).unwrap();
        assert_eq!(recordings.motions.len(), 3);
        for motion in &recordings.motions {
            assert_eq!((motion.rows.len(), motion.exercises.len()), (7_000, 7), "{}", motion.wearer);
            assert!(motion.exercise(0, 128).is_some());
            assert_eq!(motion.exercise(990, 128), None, "a window over two exercises has no name");
        }
    }

    #[test]
    fn a_folder_of_other_column_names_and_a_series_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let motion = "recording,label,side,t_ms,ax_mg,ay_mg,az_mg,wx_mrad,wy_mrad,wz_mrad\n2,FEL,L,0,991,58,-131,64,-5,-15\n";
        fs::write(dir.path().join("watch_ann a.csv"), motion).unwrap();
        fs::write(dir.path().join("oven.csv"), "timestamp,value\n2013-07-04 00:00:00,69.5\n").unwrap();
        fs::write(dir.path().join("notes.txt"), "not read").unwrap();
        let recordings = Recordings::load(Some(dir.path())).unwrap();
        assert_eq!(recordings.motions[0].wearer, "ann-a");
        assert_eq!(recordings.motions[0].rows, [[991, 58, -131, 64, -5, -15]]);
        assert_eq!(recordings.motions[0].exercise(0, 1), Some("FEL"));
        assert_eq!(recordings.series, [[69.5]]);
    }

    #[test]
    fn a_mistake_is_told_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Recordings::load(Some(dir.path())), Err(RecordingError::None { .. })));
        fs::write(dir.path().join("a.csv"), "ax,ay,az,gx,gy,gz\n1,2,3,4,5,6\n1,2,3,4,5,60000\n").unwrap();
        let text = Recordings::load(Some(dir.path())).unwrap_err().to_string();
        assert!(text.ends_with("a.csv line 3: `60000` is not a whole number from -32768 to 32767"), "{text}");
    }
}
