mod aggregate;
mod codec;
mod keep;
mod spec;
mod windower;

use crate::payload::{Decoder, Samples};

/// A message of one channel, as a decoder makes it.
fn message(json: &str, rate_hz: f64) -> Samples {
    let format =
        format!(r#"{{"format":"json","layout":"columns","fields":["/v"],"rate_hz":{rate_hz},"time":"/t","time_unit":"us"}}"#);
    decode(&format, json)
}

/// A message of one channel that states no time.
fn untimed(json: &str, rate_hz: f64) -> Samples {
    decode(&format!(r#"{{"format":"json","layout":"columns","fields":["/v"],"rate_hz":{rate_hz}}}"#), json)
}

fn decode(format: &str, json: &str) -> Samples {
    let decoder = Decoder::new(&serde_json::from_str(format).unwrap()).unwrap();
    let mut out = Samples::new();
    decoder.decode(json.as_bytes(), &mut out).unwrap();
    out
}
