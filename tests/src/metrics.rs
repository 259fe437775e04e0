//! A scraped metrics page: series by name and labels.

use std::collections::BTreeMap;

/// One scrape in Prometheus text format.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    series: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Metrics {
    /// Parses a page; lines that are no sample are skipped.
    #[must_use]
    pub fn parse(page: &str) -> Self {
        let series = page.lines().filter(|l| !l.starts_with('#')).filter_map(sample).collect();
        Self { series }
    }

    /// Sum of all series of `name` whose labels include `labels`; `None` when
    /// there is no such series.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut sum = None;
        for (n, own, value) in &self.series {
            if n == name && labels.iter().all(|&(k, v)| own.get(k).is_some_and(|o| o == v)) {
                sum = Some(sum.unwrap_or(0.0) + value);
            }
        }
        sum
    }

    /// All names on the page.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.series.iter().map(|(n, _, _)| n.as_str()).collect();
        names.dedup();
        names
    }
}

fn sample(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let (head, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, labels)) = head.split_once('{') else {
        return Some((head.to_owned(), BTreeMap::new(), value));
    };
    let labels = labels.strip_suffix('}')?;
    let mut map = BTreeMap::new();
    // Labels of this system come from closed sets: no commas, no escapes.
    for pair in labels.split(',').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=')?;
        map.insert(key.to_owned(), value.trim_matches('"').to_owned());
    }
    Some((name.to_owned(), map, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_found_by_labels() {
        let page = "# HELP x y\na_total{reason=\"REFUSED\",path=\"local\"} 2\na_total{reason=\"REFUSED\",path=\"mesh\"} 3\n\
                    a_total{reason=\"DENIED\"} 1\nplain 4.5\n";
        let metrics = Metrics::parse(page);
        assert_eq!(metrics.sum("a_total", &[("reason", "REFUSED")]), Some(5.0));
        assert_eq!(metrics.sum("a_total", &[]), Some(6.0));
        assert_eq!(metrics.sum("plain", &[]), Some(4.5));
        assert_eq!(metrics.sum("a_total", &[("reason", "BUSY")]), None);
    }
}
