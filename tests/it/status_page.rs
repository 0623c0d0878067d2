//! The status page in a real browser. Screenshots are kept in `target/artifacts`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use serde_json::json;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::support::{
    Codec, Socket, TestApp,
    chromium::Page,
    claiming::{Owner, owners},
    http::post,
    mail_server::MailServer,
    mailing::message,
    sign_in,
};

const TOKEN: &str = "a-token-for-the-page";
/// The longest number that the page can show.
const LARGE: &str = "88,888";

/// Makes claims, messages and invalid requests until it is stopped.
struct Load {
    running: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Load {
    async fn start(app: &Arc<TestApp>) -> Self {
        let owner = owners(&**app, 1, 100).await.remove(0);
        let alice = sign_in(&**app, "alice@example.org").await;
        let socket = Socket::connect(&**app, &alice.token, Codec::Json).await;
        let running = Arc::new(AtomicBool::new(true));
        let task = tokio::spawn({
            let (running, app) = (running.clone(), app.clone());
            async move {
                let Owner { person, socket: reader } = owner;
                while running.load(Ordering::Relaxed) {
                    let claim = json!({ "user_id": person.user, "claim_id": Uuid::new_v4() });
                    socket.request("keys.claim", claim).await;
                    socket.request("messages.send", message(&[&person], "moving")).await;
                    let arrived = reader.event("message").await;
                    reader.request("messages.ack", json!({ "seqs": [arrived["seq"]] })).await;
                    socket.refused("users.find", json!({})).await;
                    post(&*app, "/v1/auth/otp", json!({ "email": "nobody" })).await;
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            }
        });
        Self { running, task }
    }

    async fn stop(self) {
        self.running.store(false, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

/// Returns a script that reads the first number on the card with this title.
fn number(title: &str) -> String {
    format!(
        "(() => {{ const card = [...document.querySelectorAll('.chart')].find(c => c.querySelector('h4').textContent === {title:?}); \
         return parseFloat(card.querySelector('.figure b').textContent.replaceAll(',', '')); }})()"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_page_updates_fits_the_screen_and_is_accessible() {
    let app = Arc::new(TestApp::start(&[("LIMITS__CLAIM_BURST", "30"), ("LIMITS__SENDS_PER_PAIR_SECOND", "0")]));
    let load = Load::start(&app).await;
    let mut page = Page::open().await;
    page.set_viewport(1280, 800, "light").await;
    page.navigate(&format!("http://{}/status", app.admin())).await;
    page.wait_until("document.getElementById('state').dataset.state === 'ready'").await;
    assert_eq!(page.evaluate("document.title.endsWith('Sealwire: Ready')").await, true);
    assert_eq!(page.evaluate("document.querySelectorAll('.chart').length").await, 12);

    for title in ["Claimed bundles", "Envelopes", "Requests", "Deliveries", "Process"] {
        page.wait_until(&format!("{} > 0", number(title))).await;
    }
    page.wait_until(&format!("{} > 0", number("Error responses"))).await;
    let before = page.evaluate(&number("Error responses")).await;
    page.wait_until(&format!("{} > {before}", number("Error responses"))).await;
    page.wait_until(&format!("{} === 2", number("Connected devices"))).await;
    // The server keeps the history: after two steps a chart has a line, even on a page that is opened later.
    let drawn = "document.querySelectorAll('.chart')[1].querySelector('.stroke').getAttribute('d')?.split('L').length";
    page.wait_until(&format!("{drawn} >= 3")).await;
    page.navigate("about:blank").await;
    page.navigate(&format!("http://{}/status", app.admin())).await;
    page.wait_until(&format!("{drawn} >= 3")).await;
    page.wait_until("document.getElementById('errors').textContent.includes('bad_request')").await;
    // The time before the start is marked, and not shown as zeros.
    assert_eq!(page.evaluate("document.querySelectorAll('.plot .hatch:not([hidden])').length").await, 12);
    page.wait_until("/before this node started, \\d/.test(document.getElementById('young').innerText)").await;
    // Refusals to clients are routine.
    let card =
        "[...document.querySelectorAll('.chart')].find(c => c.querySelector('h4').textContent === 'Error responses')";
    let marked = format!("{card}.querySelectorAll('[data-severity=page], [data-severity=ticket], .seen').length");
    assert_eq!(page.evaluate(&marked).await, 0);

    for (width, height, scheme) in [
        (1920, 1080, "light"),
        (1366, 768, "dark"),
        (1366, 768, "light"),
        (820, 1100, "light"),
        (390, 844, "dark"),
        (320, 640, "light"),
    ] {
        page.set_viewport(width, height, scheme).await;
        page.wait_until(&format!("innerWidth === {width}")).await;
        let overflow = "[document.documentElement.scrollWidth - innerWidth, \
             [...document.querySelectorAll('body *')].filter(e => !e.closest('svg, pre, .spoken') && e.getBoundingClientRect().right > innerWidth + 0.5) \
             .map(e => e.className || e.tagName).join(), \
             [...document.querySelectorAll('.chart, .chart *:not(.axis span)')].filter(e => e.scrollWidth > e.clientWidth && !e.closest('svg, span')) \
             .map(e => e.textContent).join()]";
        assert_eq!(page.evaluate(overflow).await, json!([0, "", ""]), "{width} wide");
        let dark = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(n => n < 60)";
        assert_eq!(page.evaluate(dark).await, scheme == "dark", "{scheme}");
        let faint = page.evaluate(CONTRAST).await;
        assert_eq!(faint, json!([]), "text that is hard to read in {scheme}");
        page.wait_until(&format!("!document.body.textContent.includes('{LARGE}')")).await;
        page.screenshot(&format!("status-{width}-{scheme}.png")).await;
        let small = page.evaluate(SMALL).await;
        assert_eq!(small, json!([]), "text that is too small");
        // The layout does not change when the numbers grow. This is after the screenshot, which has real numbers.
        let grown = format!(
            "(() => {{ const places = () => JSON.stringify([...document.querySelectorAll('.chart, .figure, .plot, table')] \
               .map(e => e.getBoundingClientRect()).map(b => [b.left, b.top, b.width, b.height])); \
             const before = places(); \
             document.querySelectorAll('.figure b').forEach(b => b.firstChild.textContent = '{LARGE}'); \
             return before === places(); }})()"
        );
        assert_eq!(page.evaluate(&grown).await, true, "{width} wide, the layout does not change");
        assert_eq!(page.evaluate(overflow).await, json!([0, "", ""]), "{width} wide, with large numbers");
    }
    // Pointing at a chart shows its value at that time.
    page.set_viewport(1280, 800, "light").await;
    let corner = "(() => { const box = document.querySelector('.chart svg').getBoundingClientRect(); \
         return [box.right - 1, box.top + 5]; })()";
    let corner = page.evaluate(corner).await;
    let pointer = json!({ "type": "mouseMoved", "x": corner[0], "y": corner[1] });
    page.call("Input.dispatchMouseEvent", pointer).await;
    page.wait_until("document.querySelector('.axis').textContent === 'now2'").await;
    // The keyboard does the same, for all charts at once.
    page.evaluate("document.getElementById('moment').focus()").await;
    let key = json!({ "type": "keyDown", "key": "ArrowLeft", "code": "ArrowLeft", "windowsVirtualKeyCode": 37 });
    page.call("Input.dispatchKeyEvent", key).await;
    page.wait_until("[...document.querySelectorAll('.axis')].every(a => a.textContent.startsWith('0:05 ago'))").await;
    assert_eq!(page.evaluate("document.getElementById('moment').getAttribute('aria-valuetext')").await, "5 s ago");

    let unnamed = "[...document.querySelectorAll('svg')].filter(s => s.getAttribute('role') !== 'img' || !s.querySelector('title').textContent).length \
         + [...document.querySelectorAll('section')].filter(s => !document.getElementById(s.getAttribute('aria-labelledby'))).length";
    assert_eq!(page.evaluate(unnamed).await, 0);
    assert_eq!(page.evaluate("document.getElementById('state').getAttribute('role')").await, "status");
    assert_eq!(page.problems, Vec::<String>::new(), "no console errors and no policy violations");

    load.stop().await;
    page.set_viewport(1280, 800, "light").await;
    drop(Arc::into_inner(app).expect("the load has released it"));
    page.wait_until("document.getElementById('state').dataset.state === 'gone'").await;
    page.wait_until("/^for ([2-9]|\\d\\d) s$/.test(document.getElementById('silence').textContent)").await;
    assert_eq!(page.evaluate("document.title").await, "(1) Sealwire: No answer: the server cannot be reached");
    page.wait_until(&opened("NodeAway")).await;
    assert_eq!(page.evaluate("document.documentElement.hasAttribute('data-stale')").await, true);
    page.screenshot("status-gone.png").await;
}

/// Returns a script that opens the alert of this name, and returns whether it shows its paragraph of the runbook.
fn opened(alert: &str) -> String {
    format!(
        "(() => {{ const shown = [...document.querySelectorAll('.alert')].find(a => a.querySelector('strong').textContent === {alert:?}); \
         if (!shown) return false; \
         shown.querySelector('details').open = true; \
         const text = document.getElementById({alert:?}).textContent; \
         return text.length > 80 && shown.querySelector('details p').innerText.length > 80 && shown.querySelector('details p').textContent === text; }})()"
    )
}

/// Figures that need attention are marked, and the page itself says what to do.
#[tokio::test(flavor = "multi_thread")]
async fn an_alert_opens_its_paragraph_of_the_runbook() {
    let server = MailServer::start().await;
    server.state.refuse_with.store(550, Ordering::SeqCst);
    let app = TestApp::start(&[("MAILER__URL", &server.url())]);
    post(&app, "/v1/auth/otp", json!({ "email": "alice@example.org" })).await;
    let mut page = Page::open().await;
    page.set_viewport(390, 844, "light").await;
    page.navigate(&format!("http://{}/status", app.admin())).await;
    page.wait_until(&opened("MailFails")).await;
    assert_eq!(page.evaluate("document.title").await, "(1) Sealwire: Ready");
    assert_eq!(page.evaluate("document.getElementById('state').dataset.severity").await, "page");
    let spoken = "document.getElementById('state').textContent";
    assert_eq!(page.evaluate(spoken).await, "Ready · 1 alert: MailFails");
    let marked = "[...document.querySelectorAll('.figure[data-severity=page]')].map(f => f.textContent).join()";
    assert_eq!(page.evaluate(marked).await, "1not sent");
    assert_eq!(page.evaluate(CONTRAST).await, json!([]));
    // The alert stays open while the figures are updated.
    let uptime = page.evaluate("document.getElementById('uptime').textContent").await;
    page.wait_until(&format!("document.getElementById('uptime').textContent !== {uptime}")).await;
    assert_eq!(page.evaluate("document.querySelector('.alert details').open").await, true);
    page.screenshot("status-alert.png").await;
    // A link to a section of the runbook opens the runbook, which is closed at first.
    page.navigate(&format!("http://{}/status#outages", app.admin())).await;
    page.wait_until("document.getElementById('runbook').open").await;
    assert_eq!(page.problems, Vec::<String>::new());
}

/// A script that returns every text that is smaller than 13 pixels.
const SMALL: &str = r"[...document.querySelectorAll('body *')]
  .filter((e) => !e.closest('svg, noscript') && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
  .filter((e) => parseFloat(getComputedStyle(e).fontSize) < 13).map((e) => e.textContent)";

/// A script that returns every text whose contrast to its background is below 4.5 (WCAG 2.2, 1.4.3, by its definition).
const CONTRAST: &str = r"(() => {
  const parse = (text) => text.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((n) => n / 255)
    .map((n) => (n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4))
    .reduce((sum, n, index) => sum + n * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] !== 0) return c; } };
  return [...document.querySelectorAll('body *')]
    .filter((e) => !e.closest('svg, noscript') && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .map((e) => [e.textContent, [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((a, b) => b - a)])
    .filter(([, [high, low]]) => (high + 0.05) / (low + 0.05) < 4.5).map(([text]) => text);
})()";

/// The URL may contain the token, which the page's own requests then carry, too.
#[tokio::test(flavor = "multi_thread")]
async fn the_status_page_works_with_a_token() {
    let app = TestApp::start(&[("ADMIN__TOKEN", TOKEN)]);
    let mut page = Page::open().await;
    page.navigate(&format!("http://operator:{TOKEN}@{}/status", app.admin())).await;
    page.wait_until("document.getElementById('state').dataset.state === 'ready'").await;
    assert_eq!(page.problems, Vec::<String>::new());
}
