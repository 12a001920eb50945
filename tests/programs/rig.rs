//! A program on an address of its own, and ways to ask it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use wechsler::virtual_server::programs::{Exit, Fault, LlamaSetup, Process, Program, ProgramFaults, Signal, VllmSetup};

/// Long enough for a loaded machine; what is expected not to come is waited for with less.
pub(crate) const LONG: Duration = Duration::from_secs(10);
/// What has not come after this does not come.
pub(crate) const SHORT: Duration = Duration::from_millis(150);
/// No answer but a long stream is longer.
const MOST_BYTES: usize = 64 * 1024;
/// A short load.
pub(crate) const LOAD: Duration = Duration::from_millis(40);

/// Every program of a test run has a loopback address of its own, so that no port can be in anybody's way.
pub(crate) fn address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let port = 10_000 + u16::try_from(std::process::id() % 20_000).expect("below 20000");
    (Ipv4Addr::new(127, 88, 0, NEXT.fetch_add(1, Relaxed)), port).into()
}

/// A folder that goes with the test.
pub(crate) struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name = format!("wechsler-programs-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).expect("it is there")
    }

    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.bytes(name);
        change(&mut bytes);
        std::fs::write(self.file(name), bytes).expect("written");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A program that runs, or did.
pub(crate) struct Rig {
    pub(crate) program: Program,
    pub(crate) faults: Arc<ProgramFaults>,
    pub(crate) process: Process,
    pub(crate) slots: Folder,
    client: reqwest::Client,
}

pub(crate) fn llama_setup(slots: &Path) -> LlamaSetup {
    LlamaSetup {
        address: address(),
        alias: "m".into(),
        model_path: "/models/m.gguf".into(),
        n_ctx: 4096,
        parallel: 1,
        slot_dir: slots.into(),
        build: "b11434-abcdef".into(),
        load: LOAD,
        per_token: Duration::from_micros(200),
        vram_mib: 8000,
    }
}

pub(crate) fn vllm_setup() -> VllmSetup {
    VllmSetup {
        address: address(),
        model: "org/model".into(),
        max_model_len: 4096,
        load: LOAD,
        per_token: Duration::from_micros(200),
        vram_mib: 20_000,
    }
}

impl Rig {
    pub(crate) fn starting(change: impl FnOnce(&mut LlamaSetup), faults: &[Fault]) -> Self {
        let slots = Folder::new();
        let mut setup = llama_setup(slots.path());
        change(&mut setup);
        Self::of(Program::LlamaCpp(setup), faults, slots)
    }

    pub(crate) async fn llama() -> Self {
        Self::llama_with(|_| {}).await
    }

    pub(crate) async fn llama_with(change: impl FnOnce(&mut LlamaSetup)) -> Self {
        let rig = Self::starting(change, &[]);
        rig.ready().await;
        rig
    }

    pub(crate) fn vllm_starting(change: impl FnOnce(&mut VllmSetup), faults: &[Fault]) -> Self {
        let mut setup = vllm_setup();
        change(&mut setup);
        Self::of(Program::Vllm(setup), faults, Folder::new())
    }

    pub(crate) async fn vllm() -> Self {
        let rig = Self::vllm_starting(|_| {}, &[]);
        rig.ready().await;
        rig
    }

    fn of(program: Program, faults: &[Fault], slots: Folder) -> Self {
        let all = Arc::new(ProgramFaults::default());
        for fault in faults {
            all.set(fault.clone());
        }
        let process = program.start(4711, Arc::clone(&all));
        let client = reqwest::Client::builder().no_proxy().timeout(LONG).build().expect("a client");
        Self { program, faults: all, process, slots, client }
    }

    /// The next process of the same unit.
    pub(crate) async fn start_again(&mut self) {
        self.process = self.program.start(4712, Arc::clone(&self.faults));
        self.ready().await;
    }

    pub(crate) async fn restart(&mut self) {
        self.process.signal(Signal::Term);
        assert_eq!(self.exit().await, Exit::Code(0));
        self.start_again().await;
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.program.address())
    }

    pub(crate) async fn ready(&self) {
        self.until(|| self.process.truth().ready).await;
    }

    pub(crate) async fn until(&self, so: impl Fn() -> bool) {
        timeout(LONG, async {
            while !so() {
                sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .expect("it becomes so");
    }

    pub(crate) async fn exit(&self) -> Exit {
        let mut exited = self.process.exited();
        let exit = timeout(LONG, exited.wait_for(Option::is_some)).await.expect("it ends").expect("and says how");
        exit.expect("some")
    }

    pub(crate) async fn runs_on(&self) {
        sleep(SHORT).await;
        assert_eq!(*self.process.exited().borrow(), None);
    }

    /// Status and body; `None`: no whole answer.
    pub(crate) async fn try_get(&self, path: &str) -> Option<(u16, String)> {
        taken(self.client.get(self.url(path))).await
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        self.try_get(path).await.expect("an answer")
    }

    pub(crate) async fn get_json(&self, path: &str) -> Value {
        let (status, body) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).expect("JSON")
    }

    pub(crate) fn post_request(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client.post(self.url(path)).header("content-type", "application/json").body(body.to_string())
    }

    pub(crate) async fn try_post(&self, path: &str, body: Value) -> Option<(u16, String)> {
        taken(self.post_request(path, &body)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let (status, body) = self.try_post(path, body).await.expect("an answer");
        (status, serde_json::from_str(&body).expect("JSON"))
    }

    /// A request in the background that runs until it is aborted or answered.
    pub(crate) fn post_later(&self, path: &str, body: Value) -> tokio::task::JoinHandle<Option<(u16, String)>> {
        tokio::spawn(taken(self.post_request(path, &body)))
    }

    /// One that takes so long that nobody waits for its end, already at work.
    pub(crate) async fn long_request(&self) -> tokio::task::JoinHandle<Option<(u16, String)>> {
        let path = if matches!(self.program, Program::Vllm(_)) { "/v1/completions" } else { "/completion" };
        let task = self.post_later(path, json!({ "prompt": "long", "n_predict": 4000, "max_tokens": 4000 }));
        self.until(|| self.process.truth().in_flight > 0).await;
        sleep(Duration::from_millis(20)).await;
        task
    }

    pub(crate) async fn complete(&self, prompt: &str, tokens: u64) -> Value {
        let (status, body) = self.post("/completion", json!({ "prompt": prompt, "n_predict": tokens })).await;
        assert_eq!(status, 200, "{body}");
        body
    }

    pub(crate) async fn slot_action(&self, slot: &str, action: &str, file: &str) -> (u16, Value) {
        self.post(&format!("/slots/{slot}?action={action}"), json!({ "filename": file })).await
    }

    /// A whole number of the metrics page.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let (status, page) = self.get("/metrics").await;
        assert_eq!(status, 200);
        let line =
            page.lines().find(|line| line.starts_with(&format!("{name} ")) || line.starts_with(&format!("{name}{{")));
        let line = line.unwrap_or_else(|| panic!("no {name} in\n{page}"));
        line.rsplit(' ').next().and_then(|n| n.trim_end_matches(".0").parse().ok()).expect("a number")
    }

    /// Whether nothing listens there.
    pub(crate) async fn is_refused(&self) -> bool {
        let tried = tokio::net::TcpStream::connect(self.program.address()).await;
        tried.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    }

    pub(crate) async fn waits_for_port(&self) {
        let begun = Instant::now();
        while self.is_refused().await {
            assert!(begun.elapsed() < LONG, "it never listens");
            sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn taken(request: reqwest::RequestBuilder) -> Option<(u16, String)> {
    let mut answer = request.send().await.ok()?;
    let status = answer.status().as_u16();
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.ok()? {
        body.extend_from_slice(&part);
        assert!(body.len() <= MOST_BYTES || status == 200, "an endless answer");
    }
    Some((status, String::from_utf8(body).ok()?))
}
