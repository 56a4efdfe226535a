//! Adam (arXiv 1412.6980), with a state that can be written down.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use rayon::prelude::*;

use crate::Result;

const BETA: (f32, f32) = (0.9, 0.98);
const EPSILON: f32 = 1e-8;
/// Longest gradient over all variables together; longer ones are shortened to it.
const LONGEST: f64 = 1.0;

/// First and second moments of every variable.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Adam {
    pub(crate) steps: u64,
    pub(crate) first: Vec<Vec<f32>>,
    pub(crate) second: Vec<Vec<f32>>,
}

impl Adam {
    pub(crate) fn new(variables: &[&Var]) -> Self {
        let zeros = |variable: &&Var| vec![0.0; variable.elem_count()];
        Self {
            steps: 0,
            first: variables.iter().map(zeros).collect(),
            second: variables.iter().map(zeros).collect(),
        }
    }

    /// Moves the variables down their gradients, a matrix `[in, out]` by `learning_rate / in` for
    /// each of its numbers, so that no output of unit inputs changes by more than `learning_rate`
    /// (arXiv 2203.03466 scales rates like this). Says how long the gradient was; one that is not
    /// finite moves nothing.
    pub(crate) fn step(
        &mut self,
        variables: &[&Var],
        gradients: &GradStore,
        learning_rate: f64,
    ) -> Result<f64> {
        let mut flat = Vec::with_capacity(variables.len());
        for variable in variables {
            flat.push(match gradients.get(variable) {
                Some(gradient) => gradient.flatten_all()?.to_vec1::<f32>()?,
                None => vec![0.0; variable.elem_count()],
            });
        }
        let squares = flat
            .par_iter()
            .map(|g| -> f64 { g.iter().map(|x| f64::from(*x).powi(2)).sum() });
        let length = squares.sum::<f64>().sqrt();
        if !length.is_finite() {
            return Ok(length);
        }
        self.steps += 1;
        let shorten = (LONGEST / length.max(LONGEST)) as f32;
        let power = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let corrected =
            learning_rate as f32 * (1.0 - BETA.1.powi(power)).sqrt() / (1.0 - BETA.0.powi(power));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((variable, gradient), (first, second)) in variables.iter().zip(&flat).zip(moments) {
            let inputs = match variable.dims() {
                [inputs, _] => *inputs as f32,
                _ => 1.0,
            };
            let rate = corrected / inputs;
            let mut numbers: Vec<f32> = variable.flatten_all()?.to_vec1()?;
            let places = numbers.par_iter_mut().zip(gradient);
            places
                .zip(first.par_iter_mut().zip(second))
                .with_min_len(1 << 14)
                .for_each(|((x, g), (m, v))| {
                    let g = g * shorten;
                    *m = BETA.0 * *m + (1.0 - BETA.0) * g;
                    *v = BETA.1 * *v + (1.0 - BETA.1) * g * g;
                    *x -= rate * *m / (v.sqrt() + EPSILON);
                });
            let device = variable.device();
            variable.set(&Tensor::from_vec(numbers, variable.shape(), device)?)?;
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_parabola_is_descended_and_bad_gradients_change_nothing() {
        let variable = Var::new(&[3.0f32, -2.0], &Device::Cpu).unwrap();
        let mut adam = Adam::new(&[&variable]);
        for _ in 0..200 {
            let loss = variable.sqr().unwrap().sum_all().unwrap();
            let gradients = loss.backward().unwrap();
            adam.step(&[&variable], &gradients, 0.05).unwrap();
        }
        let found: Vec<f32> = variable.to_vec1().unwrap();
        assert!(found.iter().all(|x| x.abs() < 0.05), "{found:?}");
        let before = adam.clone();
        let loss = (variable.sqr().unwrap().sum_all().unwrap() * f64::INFINITY).unwrap();
        adam.step(&[&variable], &loss.backward().unwrap(), 0.05)
            .unwrap();
        assert_eq!(adam, before);
        assert_eq!(variable.to_vec1::<f32>().unwrap(), found);
    }
}
