//! Questions about a gateway that is there, is not, is too old, or does not answer.

use serde_json::Value;
use weir_logic::gateway::Explanation;
use weir_logic::wire::GivenAnswer;

use super::*;

/// Status line and body.
async fn ask(rig: &Rig, gateway: &str, query: &str) -> (bool, String) {
    let answer = get(rig.http, &format!("/gateways/{gateway}/explain.json?{query}")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.contains(" 200 "), body.to_owned())
}

async fn answer(rig: &Rig, gateway: &str, query: &str) -> Value {
    let (is_ok, body) = ask(rig, gateway, query).await;
    assert!(is_ok, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// A box that has stored two records, and answers the next question.
async fn answers(gateway: &mut Gateway) -> String {
    loop {
        if let Body::Question(question) = gateway.hear().await.unwrap() {
            let explanation = Explanation { version: 77, ..Explanation::default() };
            let json = serde_json::to_vec(&explanation).unwrap().into();
            gateway.say(Body::Answer(GivenAnswer { id: question.id, json, error: String::new() })).await;
            return question.text;
        }
    }
}

#[tokio::test]
async fn the_box_says_why_and_the_cloud_what_it_has() {
    let rig = Rig::start().await;
    let mut gateway = rig.gateway("box-1").await;
    gateway.hello(7, &[]).await.unwrap();
    gateway.send_block(&block(Class::Normal, 7, 2, &[b"a", b"b"]).1).await;
    gateway.acked(7, Class::Normal, 2, 3).await.unwrap();
    let (said, asked) = tokio::join!(answer(&rig, "box-1", "stream=pumps"), answers(&mut gateway));
    assert_eq!((asked.as_str(), &said["answer"]["version"], &said["no_answer"]), ("stream=pumps", &77.into(), &Value::Null));
    let lane = &said["lanes"][2];
    assert_eq!((&lane["lane"], &lane["last_seq"], &lane["gaps"]), (&"normal".into(), &3.into(), &2.into()), "{said}");
    let record = |seq: u64| format!("record=0000000000000007:normal:{seq}");
    let third = record(3);
    let (stored, _) = tokio::join!(answer(&rig, "box-1", &third), answers(&mut gateway));
    assert_eq!((&stored["record"]["place"], &stored["answer"]["version"]), (&"stored".into(), &77.into()), "{stored}");
    // It gave one up and has never had another.
    let void = VoidRange { epoch: 7, lane: 2, first: 1, last: 1, reason: 1 };
    gateway.say(Body::Voids(Voids { voids: vec![void] })).await;
    gateway.acked(7, Class::Normal, 1, 1).await.unwrap();
    let mut status = rig.status.clone();
    status.wait_for(|status| status.connections == 1).await.unwrap();
    gateway.connection.close(0u32.into(), b"off");
    status.wait_for(|status| status.connections == 0).await.unwrap();
    for (seq, place) in [(3, "stored"), (1, "void"), (0, "absent")] {
        let away = answer(&rig, "box-1", &record(seq)).await;
        assert_eq!((&away["record"]["place"], &away["no_answer"]), (&place.into(), &"it is not connected".into()), "{away}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn who_cannot_answer_is_named_with_the_reason() {
    let rig = Rig::start().await;
    let (is_ok, text) = ask(&rig, "box-9", "").await;
    assert!(!is_ok && text.contains("there is no gateway `box-9`"), "{text}");
    let (is_ok, text) = ask(&rig, "box-1", "what=ever").await;
    assert!(!is_ok && text.contains("ask for stream=NAME"), "{text}");
    let never = answer(&rig, "box-1", "").await;
    assert_eq!((&never["last_seen_us"], &never["no_answer"]), (&Value::Null, &"it is not connected".into()));
    let mut old = rig.gateway("box-1").await;
    old.answers = false;
    old.hello(7, &[]).await.unwrap();
    let told = answer(&rig, "box-1", "").await["no_answer"].as_str().unwrap().to_owned();
    assert!(told.contains("version test, does not answer questions yet"), "{told}");
    // One that says that there is no such stream, and one that goes while it is asked.
    let mut gateway = rig.gateway("box-2").await;
    gateway.hello(7, &[]).await.unwrap();
    let refuses = async {
        loop {
            if let Body::Question(question) = gateway.hear().await.unwrap() {
                let error = "there is no stream `x`".to_owned();
                gateway.say(Body::Answer(GivenAnswer { id: question.id, json: Vec::new().into(), error })).await;
                break;
            }
        }
    };
    let (told, ()) = tokio::join!(answer(&rig, "box-2", "stream=x"), refuses);
    assert_eq!(told["no_answer"], "there is no stream `x`");
    let goes = async {
        while !matches!(gateway.hear().await.unwrap(), Body::Question(_)) {}
        gateway.connection.close(0u32.into(), b"off");
    };
    let (told, ()) = tokio::join!(answer(&rig, "box-2", ""), goes);
    assert_eq!(told["no_answer"], "its connection ended before it answered");
    rig.stop().await;
}

#[tokio::test]
async fn a_box_that_does_not_answer_is_waited_for_three_seconds_and_few_questions_wait() {
    let rig = Rig::start().await;
    let mut silent = rig.gateway("box-1").await;
    silent.hello(7, &[]).await.unwrap();
    let ask = || answer(&rig, "box-1", "");
    let all = tokio::join!(ask(), ask(), ask(), ask(), ask(), ask());
    let all = [all.0, all.1, all.2, all.3, all.4, all.5].map(|said| said["no_answer"].as_str().unwrap().to_owned());
    let count = |text: &str| all.iter().filter(|said| said.contains(text)).count();
    assert_eq!((count("no answer within 3 s"), count("too many questions")), (4, 2), "{all:?}");
    let metrics = get(rig.http, "/metrics").await;
    for line in ["weir_ingest_questions_total 4\n", "weir_ingest_questions_refused_total 2\n"] {
        assert!(metrics.contains(line), "{metrics}");
    }
    rig.stop().await;
}
