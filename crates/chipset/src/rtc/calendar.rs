//! Dates, and how the clock's registers show them (MC146818A data sheet, table 3 "Time, calendar,
//! and alarm data modes").

/// Seconds of a day.
const DAY: i64 = 86_400;

/// A date and time of day, as the guest sees or sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: u8,
    /// 1 to 31.
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

impl Date {
    /// The date `seconds` after 1970-01-01T00:00:00, in the Gregorian calendar.
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let (days, of_day) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        // Years that begin in March have their leap day at the end; 400 of them have 146,097 days.
        let from_march_0000 = days + 719_468;
        let (era, of_era) =
            (from_march_0000.div_euclid(146_097), from_march_0000.rem_euclid(146_097));
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: month as u8,
            day: day as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// Seconds since 1970-01-01T00:00:00. Fields beyond their range carry over, as a clock that
    /// was set to them would show after a while.
    pub(super) fn to_seconds(self) -> i64 {
        let months = self.year * 12 + i64::from(self.month.max(1)) - 1 - 2;
        let (year, from_march) = (months.div_euclid(12), months.rem_euclid(12));
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let of_year = (153 * from_march + 2) / 5 + i64::from(self.day.max(1)) - 1;
        let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
        let days = era * 146_097 + of_era - 719_468;
        days * DAY
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }

    /// 1 (Sunday) to 7.
    pub(super) fn day_of_week(self) -> u8 {
        // 1970-01-01 was a Thursday.
        ((self.to_seconds().div_euclid(DAY) + 4).rem_euclid(7) + 1) as u8
    }
}

/// How registers represent numbers: register B's bits 2 (DM) and 1 (24/12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) binary: bool,
    pub(super) hours_24: bool,
}

const PM: u8 = 0x80;

impl Format {
    pub(super) fn encode(self, value: u8) -> u8 {
        if self.binary { value } else { ((value / 10) << 4) | (value % 10) }
    }

    pub(super) fn encode_hour(self, hour: u8) -> u8 {
        if self.hours_24 {
            return self.encode(hour);
        }
        let hour_12 = (hour + 11) % 12 + 1;
        self.encode(hour_12) | if hour >= 12 { PM } else { 0 }
    }

    pub(super) fn decode(self, value: u8) -> u8 {
        if self.binary { value } else { (value >> 4) * 10 + (value & 0xf) }
    }

    pub(super) fn decode_hour(self, value: u8) -> u8 {
        if self.hours_24 {
            return self.decode(value);
        }
        self.decode(value & !PM) % 12 + if value & PM != 0 { 12 } else { 0 }
    }
}

/// A daily alarm: its hour, minute and second; none where every one matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alarm {
    pub(super) hour: Option<u8>,
    pub(super) minute: Option<u8>,
    pub(super) second: Option<u8>,
}

impl Alarm {
    /// The first second after `seconds` at which the alarm is due; none if it never is.
    pub(super) fn next_after(self, seconds: i64) -> Option<i64> {
        let from = seconds.checked_add(1)?;
        let (day, of_day) = (from.div_euclid(DAY) * DAY, from.rem_euclid(DAY));
        match self.in_day(of_day) {
            Some(due) => Some(day + due),
            None => self.in_day(0).map(|due| day + DAY + due),
        }
    }

    /// The first due second of a day, not before `from`.
    fn in_day(self, from: i64) -> Option<i64> {
        // Without this, a field that never matches would be searched for all day.
        let possible = self.hour.is_none_or(|h| h < 24)
            && self.minute.is_none_or(|m| m < 60)
            && self.second.is_none_or(|s| s < 60);
        if !possible {
            return None;
        }
        let matching = |field: Option<u8>, start: i64, count: i64| {
            (start..count).filter(move |n| field.is_none_or(|f| i64::from(f) == *n))
        };
        for hour in matching(self.hour, from / 3600, 24) {
            let earliest = from.max(hour * 3600);
            for minute in matching(self.minute, earliest / 60 - hour * 60, 60) {
                let earliest = earliest.max((hour * 60 + minute) * 60);
                let start = (hour * 60 + minute) * 60;
                if let Some(second) = matching(self.second, earliest - start, 60).next() {
                    return Some(start + second);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_known_moments() {
        let date = |year, month, day, hour, minute, second| Date {
            year,
            month,
            day,
            hour,
            minute,
            second,
        };
        for (seconds, expected, weekday) in [
            (0, date(1970, 1, 1, 0, 0, 0), 5),
            (951_782_399, date(2000, 2, 28, 23, 59, 59), 2),
            (951_782_400, date(2000, 2, 29, 0, 0, 0), 3),
            (1_767_225_600, date(2026, 1, 1, 0, 0, 0), 5),
            (4_107_542_400, date(2100, 3, 1, 0, 0, 0), 2),
            (-1, date(1969, 12, 31, 23, 59, 59), 4),
        ] {
            assert_eq!(Date::from_seconds(seconds), expected);
            assert_eq!(expected.to_seconds(), seconds);
            assert_eq!(expected.day_of_week(), weekday);
        }
    }

    #[test]
    fn dates_round_trip_every_day_for_three_thousand_years() {
        for day in -400_000..700_000 {
            let seconds = day * DAY + 12_345;
            assert_eq!(Date::from_seconds(seconds).to_seconds(), seconds);
        }
    }

    #[test]
    fn hours_in_all_formats() {
        for binary in [false, true] {
            for hours_24 in [false, true] {
                let format = Format { binary, hours_24 };
                for hour in 0..24 {
                    assert_eq!(format.decode_hour(format.encode_hour(hour)), hour);
                }
            }
        }
        let bcd_12 = Format { binary: false, hours_24: false };
        assert_eq!(
            [0, 1, 11, 12, 13, 23].map(|h| bcd_12.encode_hour(h)),
            [0x12, 0x01, 0x11, 0x92, 0x81, 0x91]
        );
    }

    #[test]
    fn alarms_are_due_where_a_search_by_hand_finds_them() {
        let fields = |n: u8| [None, Some(0), Some(n), Some(n + 1)];
        for hour in fields(23) {
            for minute in fields(59) {
                for second in fields(59) {
                    let alarm = Alarm { hour, minute, second };
                    let due = |t: i64| {
                        let now = Date::from_seconds(t);
                        hour.is_none_or(|h| h == now.hour)
                            && minute.is_none_or(|m| m == now.minute)
                            && second.is_none_or(|s| s == now.second)
                    };
                    for from in [0, 59, 3599, 82_799, 86_398, 86_399, 1_000_000] {
                        let expected = (from + 1..=from + DAY).find(|t| due(*t));
                        assert_eq!(alarm.next_after(from), expected, "{alarm:?} after {from}");
                    }
                }
            }
        }
    }
}
