use super::*;
#[tokio::test]
async fn real() {
    let Ok(path) = std::env::var("REAL_WASM") else { return };
    let bytes = Bytes::from(std::fs::read(path).unwrap());
    let mut s = settings();
    s.wasm_bytes_max = 1 << 30; s.cache_bytes_max = 4 << 30;
    s.compile.timeout = Duration::from_secs(500); s.compile.memory_bytes_max = 8 << 30;
    let sandbox = Sandbox::start(s).unwrap();
    let t = Instant::now();
    println!("check {:?} in {:?}", sandbox.check(&bytes), t.elapsed());
    let t = Instant::now();
    let m = match sandbox.prepare(bytes).await { Ok(m) => m, Err(e) => { println!("{e}"); return } };
    println!("prepared in {:?}", t.elapsed());
    for _ in 0..3 {
        let mut c = call();
        c.args = std::env::var("REAL_ARGS").unwrap_or_default().split('|').map(str::to_owned).collect();
        let t = Instant::now();
        let o = sandbox.run(m.clone(), c).await.unwrap();
        println!("{:?} in {:?} {:?}\nout {}\nerr {}", o.end, t.elapsed(), o.usage, String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr));
    }
    // throughput
    let t = Instant::now();
    let n: u32 = std::env::var("REAL_N").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    for _ in 0..n { sandbox.run(m.clone(), call()).await.unwrap(); }
    if n > 0 { println!("{:?} per run", t.elapsed() / n); }
}
#[test]
fn stats() {
    use wasmer::sys::wasmparser::*;
    let Ok(path) = std::env::var("REAL_WASM") else { return };
    let bytes = std::fs::read(path).unwrap();
    let (mut nest, mut loc, mut brt, mut body, mut ops, mut brtot) = (0, 0, 0, 0, 0u64, 0u64);
    for p in Parser::new(0).parse_all(&bytes) {
        match p.unwrap() {
            Payload::CodeSectionEntry(b) => {
                body = body.max(b.range().end - b.range().start);
                let l: u32 = b.get_locals_reader().unwrap().into_iter().map(|l| l.unwrap().0).sum();
                loc = loc.max(l);
                let mut d = 0u32;
                for o in b.get_operators_reader().unwrap() { ops += 1; match o.unwrap() {
                    Operator::Block{..}|Operator::Loop{..}|Operator::If{..} => { d += 1; nest = nest.max(d) }
                    Operator::End => d = d.saturating_sub(1),
                    Operator::BrTable{targets} => { brt = brt.max(targets.len()); brtot += targets.len() as u64 }
                    _ => {} } }
            }
            Payload::TypeSection(r) => println!("types {}", r.count()),
            Payload::ImportSection(r) => println!("imports {}", r.count()),
            Payload::FunctionSection(r) => println!("functions {}", r.count()),
            Payload::GlobalSection(r) => println!("globals {}", r.count()),
            Payload::ExportSection(r) => println!("exports {}", r.count()),
            Payload::ElementSection(r) => println!("elemsegs {}", r.count()),
            Payload::DataSection(r) => println!("datasegs {}", r.count()),
            Payload::TableSection(r) => for t in r { println!("table {:?}", t.unwrap().ty) },
            Payload::MemorySection(r) => for t in r { println!("mem {:?}", t.unwrap()) },
            _ => {}
        }
    }
    println!("nest {nest} locals {loc} br_table {brt} total {brtot} body {body} ops {ops}");
}
