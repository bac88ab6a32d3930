//! The protocol, and what is made of text.

use bytes::Bytes;

use super::super::ModuleError;
use super::{Answer, Compiler, Job, Limits, Reply, TAG_AT, Task, job, translated};

fn encoded(answer: &Answer) -> Vec<u8> {
    let mut bytes = 38_i32.to_le_bytes().to_vec();
    answer.write(&mut bytes).unwrap();
    bytes
}

#[test]
fn replies_survive_the_pipe() {
    let reply = Reply::decode(encoded(&Answer::Made(vec![1, 2, 3].into()))).unwrap();
    assert_eq!(reply.unfiltered, 38);
    assert!(matches!(reply.answer, Answer::Made(bytes) if bytes[..] == [1, 2, 3]));
    let text = || "why".to_owned();
    for error in [
        ModuleError::Invalid(text()),
        ModuleError::OverLimit(text()),
        ModuleError::CompileLimit(text()),
        ModuleError::Busy,
        ModuleError::Internal(text()),
    ] {
        let decoded = Reply::decode(encoded(&Answer::Refused(error.clone()))).unwrap();
        let Answer::Refused(again) = decoded.answer else {
            panic!("{error:?}")
        };
        assert_eq!(format!("{again:?}"), format!("{error:?}"));
    }
}

#[test]
fn a_cut_or_lengthened_or_unknown_reply_is_none() {
    let whole = encoded(&Answer::Made(vec![7; 20].into()));
    for length in 0..whole.len() {
        assert!(
            Reply::decode(whole[..length].to_vec()).is_none(),
            "{length} bytes"
        );
    }
    assert!(Reply::decode([&whole[..], b"x"].concat()).is_none());
    let mut unknown = encoded(&Answer::Made(Bytes::new()));
    unknown[TAG_AT] = 9;
    assert!(Reply::decode(unknown).is_none());
}

#[test]
fn limits_and_jobs_survive_the_pipe() {
    let limits = Limits {
        memory_bytes_max: 1 << 40,
        cpu_seconds_max: 31,
    };
    let again = Limits::decode(limits.encode()).unwrap();
    assert_eq!(
        (again.memory_bytes_max, again.cpu_seconds_max),
        (1 << 40, 31)
    );
    let mut foreign = limits.encode();
    foreign[7] ^= 1;
    assert!(Limits::decode(foreign).is_none());

    for task in [
        Task::Compile(Compiler::Singlepass),
        Task::Compile(Compiler::Cranelift),
        Task::Translate,
    ] {
        let input = b"module";
        let bytes = [&Job { task, input }.head()[..], input].concat();
        assert_eq!(job(&mut &bytes[..]).unwrap(), (task, input.to_vec()));
        for length in 0..bytes.len() {
            assert!(job(&mut &bytes[..length]).is_err(), "{length} bytes");
        }
    }
    assert!(job(&mut &[9, 0, 0, 0, 0, 0, 0, 0, 0][..]).is_err());
}

#[test]
fn text_becomes_binary_and_an_error_names_its_line() {
    let made = translated(b"(module)".to_vec());
    assert!(matches!(made, Answer::Made(binary) if binary[..] == *b"\0asm\x01\0\0\0"));
    let refused = translated(b"(module\n  (func\n    i32.nonsense))".to_vec());
    let Answer::Refused(ModuleError::Invalid(message)) = refused else {
        panic!("a text with a mistake is not valid");
    };
    assert!(message.contains("line 3:"), "{message}");
}
