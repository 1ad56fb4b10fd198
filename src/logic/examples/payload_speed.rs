//! Measures decoding, windowing, folding and keep rules: `cargo run --release -p weir-logic --example payload_speed`.

// An example is not part of the library: it may look at the clock and print.
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use weir_logic::payload::{
    Decoder, DocumentFormat, ElementType, Layout, PackedFormat, PayloadFormat, Samples, SenmlFormat, SparkplugFormat,
    SparkplugNodes, SparkplugTopic,
};
use weir_logic::window::{
    AggregateConfig, AggregateSpec, Aggregator, KeepConfig, KeepRules, Keeper, ValueRule, WindowConfig, WindowSpec, Windower,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    json_of_three_fields()?;
    json_of_rows()?;
    cbor_of_three_fields()?;
    cbor_of_a_typed_array()?;
    senml()?;
    sparkplug()?;
    for element in [ElementType::I16, ElementType::F32, ElementType::F64] {
        packed(element)?;
    }
    Ok(())
}

fn json_of_three_fields() -> Outcome {
    let format = PayloadFormat::Json(DocumentFormat {
        fields: ["/temp", "/hum", "/acc/z"].map(String::from).to_vec(),
        time: Some("/ts".to_owned()),
        ..json(Layout::Single)
    });
    let payload = br#"{"id":"m-000000123456","dev":"press-07","site":"plant-north","ts":1732289953.123456,"temp":21.53,"hum":48.2,"acc":{"x":0.0123,"y":-0.981,"z":0.0456},"bat":3.71,"state":"running","fw":"2.4.1","ok":true,"n":42}"#;
    decode(&format!("JSON, 3 fields and a time of {} bytes", payload.len()), &format, payload)
}

fn json_of_rows() -> Outcome {
    let format = PayloadFormat::Json(DocumentFormat {
        samples: Some("/imu".to_owned()),
        channels: Some(6),
        rate_hz: Some(50.0),
        ..json(Layout::Rows)
    });
    let row = "[0.0123,-0.981,0.0456,12.5,-3.25,0.75]";
    let payload = format!(r#"{{"imu":[{}]}}"#, [row; 50].join(","));
    decode(&format!("JSON, 50 rows of 6 channels in {} bytes", payload.len()), &format, payload.as_bytes())
}

fn cbor_of_three_fields() -> Outcome {
    let format = PayloadFormat::Cbor(DocumentFormat {
        fields: ["/temp", "/hum", "/acc/z"].map(String::from).to_vec(),
        time: Some("/ts".to_owned()),
        ..json(Layout::Single)
    });
    let number = |value: f64| [&[0xfb][..], &value.to_be_bytes()].concat();
    let text = |text: &str| [&[0x60 | text.len() as u8][..], text.as_bytes()].concat();
    let acc = [vec![0xa3], text("x"), number(0.0123), text("y"), number(-0.981), text("z"), number(0.0456)].concat();
    let (words, time) =
        ([vec![0xa8], text("id"), text("m-000000123456"), text("dev"), text("press-07")], number(1732289953.123456));
    let payload = [
        words.concat(),
        [text("site"), text("plant-north"), text("ts"), vec![0xc1], time].concat(),
        [text("temp"), number(21.53), text("hum"), number(48.2), text("acc"), acc, text("ok"), vec![0xf5]].concat(),
    ]
    .concat();
    decode(&format!("CBOR, 3 fields and a time of {} bytes", payload.len()), &format, &payload)
}

fn cbor_of_a_typed_array() -> Outcome {
    let format = PayloadFormat::Cbor(DocumentFormat {
        samples: Some(String::new()),
        channels: Some(6),
        rate_hz: Some(50.0),
        ..json(Layout::Rows)
    });
    // 40([[50, 6], 77(h'..')]): rows of 16-bit numbers, little-endian.
    let head = [0xd8, 40, 0x82, 0x82, 0x18, 50, 6, 0xd8, 77, 0x59];
    let payload = [&head[..], &600_u16.to_be_bytes(), &[7; 600]].concat();
    decode("CBOR, typed array of 50 rows of 6 channels", &format, &payload)
}

fn senml() -> Outcome {
    let fields = ["*temp", "*hum"].map(String::from).to_vec();
    let format = PayloadFormat::Senml(SenmlFormat { fields, ..SenmlFormat::default() });
    let payload = br#"[{"bn":"urn:dev:ow:10e2073a0108006:","bt":1732289953.25,"n":"temp","u":"Cel","v":21.53},{"n":"hum","u":"%RH","v":48.2},{"n":"bat","u":"V","v":3.71}]"#;
    decode(&format!("SenML, JSON of 3 records in {} bytes", payload.len()), &format, payload)
}

/// Data of a device whose birth was heard, as a gateway reads them.
fn sparkplug() -> Outcome {
    let fields = ["rpm", "temp"].map(String::from).to_vec();
    let decoder = Decoder::new(&PayloadFormat::Sparkplug(SparkplugFormat { fields, ..SparkplugFormat::default() }))?;
    let metrics = decoder.sparkplug().ok_or("the format is Sparkplug B")?;
    let metric = |bytes: &[u8]| [&[0x12, bytes.len() as u8][..], bytes].concat();
    let value = |alias: u8, value: f64| [&[0x10, alias, 0x69][..], &value.to_le_bytes()].concat();
    let birth =
        [metric(&[&b"\x0a\x03rpm"[..], &value(1, 900.0)].concat()), metric(&[&b"\x0a\x04temp"[..], &value(2, 20.0)].concat())];
    let data = [metric(&value(1, 901.0)), metric(&value(2, 20.5)), metric(&value(3, 1.0))].concat();
    let (mut nodes, mut samples) = (SparkplugNodes::new(1), Samples::new());
    let topic = |topic| SparkplugTopic::parse(topic).ok_or("a topic of Sparkplug B");
    nodes.message((0, metrics), &topic("spBv1.0/plant/DBIRTH/n1/pump")?, &birth.concat(), &mut samples)?;
    let topic = topic("spBv1.0/plant/DDATA/n1/pump")?;
    measure(&format!("Sparkplug B, data of 3 metrics in {} bytes", data.len()), || {
        let heard = nodes.message((0, metrics), &topic, black_box(&data), &mut samples);
        black_box(heard.is_ok() && samples.rows() == 1);
    });
    Ok(())
}

fn packed(element: ElementType) -> Outcome {
    let format = PayloadFormat::Packed(PackedFormat {
        element,
        channels: 6,
        scale: None,
        offset: None,
        rate_hz: Some(50.0),
        time_of: Default::default(),
    });
    let payload = vec![0; 300 * element.size_bytes()];
    decode(&format!("packed {element:?}, 50 rows of 6 channels"), &format, &payload)?;
    if element == ElementType::F32 {
        stages(&Decoder::new(&format)?, &payload)?;
    }
    Ok(())
}

/// What comes after decoding, for the same message again and again.
fn stages(decoder: &Decoder, payload: &[u8]) -> Outcome {
    let mut samples = Samples::new();
    decoder.decode(payload, &mut samples)?;
    let config = WindowConfig {
        length: "128 samples".parse()?,
        step: Some("64 samples".parse()?),
        gap_max_us: None,
        reorder_max_us: None,
    };
    let spec = WindowSpec::new(&config, 6, Some(50.0)).map_err(|errors| format!("{errors:?}"))?;
    let mut windower = Windower::new(spec);
    let mut buffer = Vec::new();
    let mut now_us = 0;
    measure("  window of 128, step 64", || {
        now_us += 1_000_000;
        windower.push_message(&samples, now_us, &mut buffer, |window| {
            black_box(window.values[0]);
        });
    });
    let spec = AggregateSpec::new(&AggregateConfig { every_us: 60_000_000, reorder_max_us: None }, 6)?;
    let mut aggregator = Aggregator::new(spec);
    measure("  aggregate a minute", || {
        now_us += 1_000_000;
        aggregator.push_message(&samples, now_us, |aggregate| drop(black_box(aggregate)));
    });
    let rule = |channel| ValueRule { channel, above: Some(1.0), below: Some(-1.0), delta: Some(0.5), changed: false };
    let config = KeepConfig { samples: (0..6).map(rule).collect(), ..KeepConfig::default() };
    let rules = KeepRules::new(&config, 6).map_err(|errors| format!("{errors:?}"))?;
    let mut keeper = Keeper::new();
    measure("  6 keep rules", || {
        now_us += 1_000_000;
        black_box(keeper.keep_message(&rules, &samples, now_us));
    });
    Ok(())
}

fn decode(name: &str, format: &PayloadFormat, payload: &[u8]) -> Outcome {
    let decoder = Decoder::new(format)?;
    let mut samples = Samples::new();
    decoder.decode(payload, &mut samples)?;
    measure(name, || {
        let result = decoder.decode(black_box(payload), &mut samples);
        black_box(result.is_ok());
    });
    Ok(())
}

/// Prints the best of several rounds, which is the one that was disturbed least.
fn measure(name: &str, mut work: impl FnMut()) {
    const ROUNDS: u32 = 20;
    const CALLS: u32 = 10_000;
    let mut best_ns = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..CALLS {
            work();
        }
        best_ns = best_ns.min(start.elapsed().as_nanos() as f64 / f64::from(CALLS));
    }
    println!("{name:<50} {best_ns:>8.0} ns a message");
}

fn json(layout: Layout) -> DocumentFormat {
    DocumentFormat {
        layout,
        fields: Vec::new(),
        samples: None,
        channels: None,
        rate_hz: None,
        time: None,
        time_unit: Default::default(),
        time_of: Default::default(),
    }
}
