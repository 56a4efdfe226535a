//! A trainer's state in a file: what is trained, with the optimiser's moments, so that a run that
//! was cut short goes on where it stopped.
//!
//! safetensors: `x0`, `x1`, … the variables, `m0`, … and `v0`, … their moments, all flat in `F32`.
//! The metadata hold the number of steps and a tag of whoever trains: what the run is.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Tensor, Var};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::adam::Adam;
use crate::{Result, TrainingError};

const STEPS: &str = "steps";
const TAG: &str = "run";

fn unusable(path: &Path, reason: &dyn ToString) -> TrainingError {
    TrainingError::State {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// Writes beside the final place and renames, so that no half of it is ever read.
pub(crate) fn save(path: &Path, tag: &str, variables: &[&Var], adam: &Adam) -> Result<()> {
    let mut tensors: Vec<(String, Vec<u8>)> = Vec::new();
    let mut push = |name: String, numbers: &[f32]| {
        tensors.push((name, numbers.iter().flat_map(|x| x.to_le_bytes()).collect()));
    };
    for (index, variable) in variables.iter().enumerate() {
        push(format!("x{index}"), &variable.flatten_all()?.to_vec1()?);
        push(format!("m{index}"), &adam.first[index]);
        push(format!("v{index}"), &adam.second[index]);
    }
    let views = tensors.iter().map(|(name, bytes)| {
        let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes);
        view.map(|view| (name, view))
    });
    let views = views.collect::<std::result::Result<Vec<_>, _>>();
    let views = views.map_err(|error| unusable(path, &error))?;
    let metadata = HashMap::from([
        (STEPS.to_owned(), adam.steps.to_string()),
        (TAG.to_owned(), tag.to_owned()),
    ]);
    let beside: PathBuf = path.with_extension("partial");
    safetensors::serialize_to_file(views, Some(metadata), &beside)
        .map_err(|error| unusable(path, &error))?;
    std::fs::rename(&beside, path).map_err(|error| unusable(path, &error))
}

/// Reads a state into the variables.
pub(crate) fn restore(path: &Path, tag: &str, variables: &[&Var]) -> Result<Adam> {
    let bytes = std::fs::read(path).map_err(|error| unusable(path, &error))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| unusable(path, &error))?;
    let entries = header.metadata().clone().unwrap_or_default();
    let found = entries.get(TAG).map_or("", String::as_str);
    if found != tag {
        return Err(unusable(
            path,
            &"it is of another run (other lessons, options or bridge); remove it, or write elsewhere",
        ));
    }
    let steps = entries.get(STEPS).and_then(|steps| steps.parse().ok());
    let steps =
        steps.ok_or_else(|| unusable(path, &"it does not say how many steps were taken"))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| unusable(path, &error))?;
    let read = |name: String, count: usize| -> Result<Vec<f32>> {
        let tensor = tensors
            .tensor(&name)
            .map_err(|error| unusable(path, &error))?;
        if tensor.dtype() != Dtype::F32 || tensor.shape() != [count] {
            return Err(unusable(
                path,
                &format!("{name} is not {count} numbers in F32"),
            ));
        }
        let numbers = tensor.data().chunks_exact(4);
        Ok(numbers
            .map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]))
            .collect())
    };
    let mut adam = Adam {
        steps,
        first: Vec::new(),
        second: Vec::new(),
    };
    let mut numbers = Vec::with_capacity(variables.len());
    for (index, variable) in variables.iter().enumerate() {
        let count = variable.elem_count();
        numbers.push(read(format!("x{index}"), count)?);
        adam.first.push(read(format!("m{index}"), count)?);
        adam.second.push(read(format!("v{index}"), count)?);
    }
    // Only now, so that a bad file leaves everything as it was.
    for (variable, numbers) in variables.iter().zip(numbers) {
        variable.set(&Tensor::from_vec(
            numbers,
            variable.shape(),
            variable.device(),
        )?)?;
    }
    Ok(adam)
}
