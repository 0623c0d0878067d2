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
    mailing::message,
    sign_in,
};

const TOKEN: &str = "a-token-for-the-page";
/// The longest number that the page can show.
const LARGE: &str = "8,888 MiB";

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

/// Returns a script that reads the number on the card with this title.
fn number(title: &str) -> String {
    format!(
        "(() => {{ const card = [...document.querySelectorAll('.chart')].find(c => c.querySelector('h3').textContent === {title:?}); \
         return parseInt(card.querySelector('.value').textContent.replaceAll(',', '')); }})()"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_page_updates_fits_the_screen_and_is_accessible() {
    let app = Arc::new(TestApp::start(&[("LIMITS__CLAIM_BURST", "30")]));
    let load = Load::start(&app).await;
    let mut page = Page::open().await;
    page.set_viewport(1280, 800, "light").await;
    page.navigate(&format!("http://{}/status", app.admin())).await;
    page.wait_until("document.getElementById('state').dataset.state === 'ready'").await;
    assert_eq!(page.evaluate("document.title").await, "Sealwire: Ready");
    assert_eq!(page.evaluate("document.querySelectorAll('.chart').length").await, 8);

    for title in ["Claims", "Messages", "Errors"] {
        page.wait_until(&format!("{} > 0", number(title))).await;
        let before = page.evaluate(&number(title)).await;
        page.wait_until(&format!("{} > {before}", number(title))).await;
    }
    page.wait_until(&format!("{} === 2", number("Connected devices"))).await;
    // The server keeps the history: after two steps a chart has a line, even on a page that is opened later.
    let drawn = "document.querySelectorAll('.chart')[1].querySelector('.stroke').getAttribute('d')?.split('L').length";
    page.wait_until(&format!("{drawn} >= 3")).await;
    page.navigate("about:blank").await;
    page.navigate(&format!("http://{}/status", app.admin())).await;
    page.wait_until(&format!("{drawn} >= 3")).await;
    page.wait_until("document.getElementById('errors').textContent.includes('bad_request')").await;

    for (width, height, scheme) in
        [(1280, 800, "light"), (1280, 800, "dark"), (820, 1100, "light"), (390, 844, "dark"), (320, 640, "light")]
    {
        page.set_viewport(width, height, scheme).await;
        page.wait_until(&format!("innerWidth === {width}")).await;
        let overflow = "[document.documentElement.scrollWidth - innerWidth, \
             [...document.querySelectorAll('body *')].filter(e => !e.closest('svg') && e.getBoundingClientRect().right > innerWidth + 0.5) \
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
        // The page also fits with the numbers of a large server. This is after the screenshot, which has real numbers.
        let large = format!("document.querySelectorAll('.value').forEach(v => v.firstChild.textContent = '{LARGE} ')");
        page.evaluate(&large).await;
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
    assert_eq!(page.evaluate("document.title").await, "Sealwire: No answer: the server cannot be reached");
    assert_eq!(page.evaluate("document.documentElement.hasAttribute('data-stale')").await, true);
    page.screenshot("status-gone.png").await;
}

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
