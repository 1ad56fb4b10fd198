//! The report: one HTML file that needs nothing else, for any width, in the light and in the dark.

mod curves;
pub(crate) mod plot;

use std::fmt::Write as _;

use super::case::{BASELINES, BOUND, Case, Details, WEIR};
use super::trace::Link;
use super::workload::Workload;
use plot::{Chart, escape, number};

/// More cases than this are folded away until they are opened.
const OPEN_MAX: usize = 4;

/// A report that grows by a case at a time, so that no case has to be kept.
#[derive(Debug, Default)]
pub struct Report {
    cases: Vec<Case>,
    sections: Vec<String>,
}

impl Report {
    /// Adds a case with its [section](Report::section).
    pub fn add(&mut self, case: Case, section: String) {
        self.cases.push(case);
        self.sections.push(section);
    }

    /// What is told of a case, as HTML; the link is the one that was simulated.
    pub fn section(link: &Link, workload: &Workload, case: &Case, details: &Details) -> String {
        let charts = curves::charts(link, workload, details);
        let offered_mb = curves::offered_bytes(&details.arrivals) / 1e6;
        let mut facts = format!(
            "<p>{} records of {} MB arrive in {} s; the link carries {} MB.",
            details.arrivals.records.len(),
            number(offered_mb),
            case.run_s,
            number(link.service.bytes() / 1e6)
        );
        if details.arrivals.size_factor > 1.0 {
            let _ = write!(facts, " Records are {} times as large as the workload says.", number(details.arrivals.size_factor));
        }
        if case.simulated_part < 1.0 {
            let _ = write!(facts, " Of the link's rate and of what arrives, {} were simulated.", number(case.simulated_part));
        }
        facts.push_str("</p>");
        format!("{facts}<div class=\"charts\">{}</div>", figures(&charts))
    }

    /// The page; `how` says what was run.
    pub fn page(&self, how: &str) -> String {
        let mut body = format!("<p>{}</p>", escape(how));
        body.push_str(
            "<p>Every policy gets the same records over the same link. <i>Ratio</i> is what its deliveries are worth, as a part of \
             the bound: of what nobody could exceed who knew link and records in advance. Values are those of the workload.</p>",
        );
        body.push_str(&self.table());
        for (index, (case, section)) in self.cases.iter().zip(&self.sections).enumerate() {
            let open = if self.cases.len() <= OPEN_MAX { " open" } else { "" };
            let title = format!("{}, load {}", escape(&case.link), number(case.load));
            let ratio = case.of(WEIR).value_ratio;
            let _ = write!(
                body,
                "<details{open}><summary>{title}<span> weir {ratio:.3} of the bound</span></summary><div id=\"case-{index}\">{section}</div></details>"
            );
        }
        page("weir sim", &body)
    }

    fn table(&self) -> String {
        let mut rows = String::new();
        for (index, case) in self.cases.iter().enumerate() {
            let _ = write!(
                rows,
                "<tr><td class=\"text\"><a href=\"#case-{index}\">{}</a></td><td>{}</td><td>{:.0}</td>",
                escape(&case.link),
                number(case.load),
                case.mean_kbit_per_s
            );
            for name in [WEIR].into_iter().chain(BASELINES) {
                let ratio = case.of(name).value_ratio;
                let _ =
                    write!(rows, "<td class=\"bar\" style=\"--part:{:.1}%\">{ratio:.3}</td>", 100.0 * ratio.clamp(0.0, 1.0));
            }
            for name in [WEIR, BASELINES[0], BOUND] {
                let _ = write!(rows, "<td>{}</td>", number(case.of(name).critical_p99_ms.round()));
            }
            let weir = case.of(WEIR);
            let _ = write!(
                rows,
                "<td>{}</td><td>{}</td><td>{}</td></tr>",
                weir.delivered,
                weir.lost,
                number(weir.bytes as f64 / 1e6)
            );
        }
        let mut feet = String::new();
        for (title, of) in [("mean", mean as fn(&[f64]) -> f64), ("worst", worst)] {
            let _ = write!(feet, "<tr><td class=\"text\">{title}</td><td></td><td></td>");
            for name in [WEIR].into_iter().chain(BASELINES) {
                let ratios: Vec<f64> = self.cases.iter().map(|case| case.of(name).value_ratio).collect();
                let _ = write!(feet, "<td>{:.3}</td>", of(&ratios));
            }
            feet.push_str("<td colspan=\"6\"></td></tr>");
        }
        format!(
            "<div class=\"wide\"><table><thead><tr><th rowspan=\"2\" class=\"text\">link</th><th rowspan=\"2\">load</th>\
             <th rowspan=\"2\">mean kbit/s</th><th colspan=\"3\">ratio to the bound</th><th colspan=\"3\">critical p99, ms</th>\
             <th colspan=\"3\">weir</th></tr><tr><th>weir</th><th>static-priority</th><th>fifo</th><th>weir</th>\
             <th>static-priority</th><th>bound</th><th>delivered</th><th>lost</th><th>sent MB</th></tr></thead>\
             <tbody>{rows}</tbody><tfoot>{feet}</tfoot></table></div>"
        )
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn worst(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Charts one after another.
pub(super) fn figures(charts: &[Chart]) -> String {
    charts.iter().map(Chart::figure).collect()
}

/// A whole page around a body.
pub(super) fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n{body}\n</html>\n",
        title = escape(title)
    )
}

/// Colours are told apart by people who see red and green alike (after Okabe and Ito), on light and on dark ground.
const STYLE: &str = "
:root { color-scheme: light dark; --ground: #fff; --text: #1a2430; --faint: #5b6673; --rule: #dfe5ec; --bar: #cfe3f5;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00; --c5: #56b4e9; }
@media (prefers-color-scheme: dark) { :root { --ground: #14191f; --text: #dde4ec; --faint: #97a3b0; --rule: #2d3742; --bar: #1f4263;
  --c0: #4aa8e8; --c1: #ff8b4a; --c2: #2fc79a; --c3: #e79cc6; --c4: #f0bf4c; --c5: #a5d8f5; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; padding: 0 1rem; max-width: 86rem; color: var(--text); background: var(--ground); }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 1.8rem; } p { max-width: 60rem; } a { color: var(--c0); }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--faint); font-weight: 600; } .text { text-align: left; } tfoot td { font-weight: 600; }
.bar { background: linear-gradient(to right, var(--bar) var(--part), transparent var(--part)); }
details { border-top: 1px solid var(--rule); padding: .5rem 0; } summary { cursor: pointer; font-weight: 600; }
summary span { color: var(--faint); font-weight: 400; margin-left: .8rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 1.5rem; }
figure { margin: 0; min-width: 0; } figcaption { display: flex; flex-wrap: wrap; gap: 0 .9rem; align-items: baseline; font-size: .87rem; }
svg { width: 100%; height: auto; display: block; } svg text { font-family: system-ui, sans-serif; fill: var(--faint); }
.tick { font-size: 12px; } .label { font-size: 12.5px; }
svg path { fill: none; } .grid { stroke: var(--rule); } .axis { stroke: var(--faint); }
svg .line { stroke-width: 1.8; stroke-linejoin: round; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); } .c4 { --c: var(--c4); } .c5 { --c: var(--c5); }
.c6 { --c: var(--text); } svg .line { stroke: var(--c); } svg .line.c6 { stroke-dasharray: 6 4; stroke-width: 1.4; }
svg .area { fill: var(--c); stroke: var(--ground); stroke-width: .5; }
.key { white-space: nowrap; color: var(--faint); } .key::before { content: ''; display: inline-block; vertical-align: .2em; margin-right: .35em; }
.key.line::before { width: 1.3em; border-top: 2.5px solid var(--c); } .key.line.c6::before { border-top-style: dashed; }
.key.area::before { width: .75em; height: .75em; vertical-align: -.05em; background: var(--c); }
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::profile::LinkProfile;
    use crate::sim::case;

    #[test]
    fn the_page_needs_nothing_else_and_shows_every_case_with_units() {
        let profile = LinkProfile::resolve("3g").expect("built in");
        let link = Link::of(profile, Some(weir_host::units::Duration::from_secs(60)), 1);
        let (workload, mut report) = (Workload::default(), Report::default());
        for load in [1.0, 4.0] {
            let (case, details) = case::run(&link, &workload, load, 1);
            let section = Report::section(&link, &workload, &case, &details);
            report.add(case, section);
        }
        let page = report.page("test <1>");
        for outside in ["http:", "https:", "src=", "<link", "@import", "<script", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        for part in [
            "id=\"case-0\"",
            "href=\"#case-1\"",
            "rate, kbit/s",
            "held, MB",
            "bytes, %",
            "delay, ms",
            "value/Mbit",
            "test &lt;1&gt;",
        ] {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf"), "numbers that cannot be drawn");
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert_eq!(page.matches("<svg").count(), 12, "six charts for each case");
    }
}
