//! Where codec artefacts are, and the codecs that use them.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use celslm_kv::CodecConfig;
use celslm_kv::codec::{ArtefactError, CodecArtefact, CodecContext};

use crate::config::ModelsConfig;
use crate::exit::Verdict;
use crate::plan::ArtefactFile;

/// The folder of artefacts beside the other configurations.
#[must_use]
pub fn folder(configs: &Path) -> PathBuf {
    configs.join("codecs")
}

/// The file of a model's default artefact: `<configs>/codecs/<model>.safetensors`.
#[must_use]
pub fn default_path(configs: &Path, model: &str) -> PathBuf {
    folder(configs).join(format!("{model}.safetensors"))
}

/// The artefact's file that the models of a configuration state or imply.
#[must_use]
pub fn path(models: &ModelsConfig, configs: &Path) -> PathBuf {
    let stated = models.codec_artefact.clone();
    stated.unwrap_or_else(|| default_path(configs, &models.edge))
}

/// The artefact that codecs need: the stated one, or else the default of the edge's model; `None`
/// if no codec needs any.
///
/// # Errors
/// [`Verdict::Config`] for an artefact that is needed and not there, with the command that fits
/// it, and for a codec that names another one.
pub fn resolve(
    codecs: impl IntoIterator<Item = CodecConfig>,
    models: &ModelsConfig,
    configs: &Path,
) -> Result<Option<ArtefactFile>, Verdict> {
    let mut codecs = codecs.into_iter();
    let Some(first) = codecs.find(CodecConfig::needs_artefact) else {
        return Ok(None);
    };
    let edge = &models.edge;
    let path = path(models, configs);
    let artefact = read(&path).map_err(|error| {
        Verdict::Config(format!(
            "codec {} needs the artefact {}: {error}; fit it with \
             `celslm codec fit --model {edge} --text DIR`",
            name(&first),
            path.display()
        ))
    })?;
    let context = CodecContext::new(Arc::clone(&artefact));
    for codec in [first].into_iter().chain(codecs) {
        codec
            .build_with(&context)
            .map_err(|error| Verdict::Config(format!("codec {}: {error}", name(&codec))))?;
    }
    Ok(Some(ArtefactFile { path, artefact }))
}

/// Reads an artefact; the error says all that is known, without the path.
///
/// # Errors
/// Why it cannot be used.
pub fn read(path: &Path) -> Result<Arc<CodecArtefact>, String> {
    CodecArtefact::read(path).map(Arc::new).map_err(|error| {
        let cause = match &error {
            ArtefactError::Io { source, .. } => return source.to_string(),
            error => error.source(),
        };
        match cause {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        }
    })
}

/// What people call a codec: its preset's name, or else its id.
#[must_use]
pub fn name(codec: &CodecConfig) -> String {
    match codec.preset() {
        Some(preset) => preset.name.to_owned(),
        None => codec.id(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::fixture::{config, fitted};

    fn codecs(config: &Config) -> Vec<CodecConfig> {
        config.codecs()
    }

    #[test]
    fn an_artefact_is_asked_for_only_where_a_codec_needs_it() {
        let dir = tempfile::tempdir().unwrap();
        let none = config(&["grid.codecs=['kivi', 'cachegen']"]);
        assert_eq!(
            resolve(codecs(&none), &none.models, dir.path()).unwrap(),
            None
        );
        let config = config(&["grid.codecs=['kivi', 'celslm', 'kvtc']"]);
        let error = resolve(codecs(&config), &config.models, dir.path())
            .unwrap_err()
            .to_string();
        let path = default_path(dir.path(), &config.models.edge);
        for part in [
            "codec celslm needs the artefact",
            path.to_str().unwrap(),
            "celslm codec fit --model qwen2.5-coder-0.5b-instruct-q4_k_m --text DIR",
        ] {
            assert!(error.contains(part), "{error}\nlacks {part}");
        }
        std::fs::create_dir_all(folder(dir.path())).unwrap();
        std::fs::write(&path, "no artefact").unwrap();
        let error = resolve(codecs(&config), &config.models, dir.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains("not a safetensors file"), "{error}");
        let artefact = fitted(1);
        artefact.save(&path).unwrap();
        let found = resolve(codecs(&config), &config.models, dir.path())
            .unwrap()
            .unwrap();
        assert_eq!((found.path, found.artefact.id()), (path, artefact.id()));
    }

    #[test]
    fn a_codec_that_names_another_artefact_is_refused_with_both() {
        let dir = tempfile::tempdir().unwrap();
        let held = fitted(2);
        let file = dir.path().join("held.safetensors");
        held.save(&file).unwrap();
        let stated = format!("models.codec_artefact={:?}", file.to_str().unwrap());
        let codec = "pca-0123456789abcdef+step-m500-d15+context";
        let config = config(&[&stated, &format!("grid.codecs=['{codec}']")]);
        let error = resolve(codecs(&config), &config.models, dir.path())
            .unwrap_err()
            .to_string();
        for part in ["0123456789abcdef", &held.id().to_string()] {
            assert!(error.contains(part), "{error}\nlacks {part}");
        }
    }
}
