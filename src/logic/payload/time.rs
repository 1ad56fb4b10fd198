//! Times as text.

use super::TimeUnit;
use super::reader::Ticks;

/// A time such as `2013-03-21T20:04:00.5+01:00`, in microseconds since the Unix epoch; none if it is none, or out of range.
/// A leap second is the first of the next minute.
pub(super) fn rfc3339_us(text: &str) -> Option<i64> {
    let (date, rest) = text.split_at_checked(10)?;
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, rest) = rest.split_at_checked(8)?;
    let [year, month, day] = fields(date, '-')?;
    let [hour, minute, second] = fields(clock, ':')?;
    let is_date = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    let (fraction_us, zone) = match rest.strip_prefix('.') {
        Some(fraction) => {
            let len = fraction.bytes().take_while(u8::is_ascii_digit).count();
            let micros = fraction[..len].bytes().chain(std::iter::repeat(b'0')).take(6);
            (micros.fold(0, |value, digit| value * 10 + i64::from(digit - b'0')), (len > 0).then_some(&fraction[len..])?)
        }
        None => (0, rest),
    };
    let offset_s = match zone.strip_prefix(['+', '-']) {
        Some(offset) => {
            let (hours, minutes) = offset.split_once(':')?;
            let offset_s = (digits(hours)? * 60 + digits(minutes)?) * 60;
            if zone.starts_with('-') { -offset_s } else { offset_s }
        }
        None if matches!(zone, "Z" | "z") => 0,
        None => return None,
    };
    let seconds = days(year, month, day) * 86_400 + (hour * 60 + minute) * 60 + second - offset_s;
    is_date.then(|| Ticks::Whole(seconds * 1_000_000 + fraction_us).time_us(TimeUnit::Us))?
}

/// Three numbers of digits only.
fn fields(text: &str, separator: char) -> Option<[i64; 3]> {
    let mut parts = text.split(separator);
    let fields = [digits(parts.next()?)?, digits(parts.next()?)?, digits(parts.next()?)?];
    parts.next().is_none().then_some(fields)
}

/// A number of one to four digits.
fn digits(text: &str) -> Option<i64> {
    let is_number = (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

/// Days since 1970-01-01 of a date in the Gregorian calendar: years that begin in March have their leap day at the end.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}
