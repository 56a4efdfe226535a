#![no_main]

libfuzzer_sys::fuzz_target!(
    init: celslm_kv_fuzz::start(celslm_kv_fuzz::artefact::seeds),
    |data: &[u8]| celslm_kv_fuzz::artefact::run(data)
);
