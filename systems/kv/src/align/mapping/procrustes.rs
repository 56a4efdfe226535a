//! `procrustes`: a rotation with one scale, after centring.

use faer::Mat;

use super::super::affine::Solution;
use super::{Choice, Mapping, Part, Problem};
use crate::align::{Affine, AlignError, Moments};

/// Orthogonal Procrustes (Schönemann 1966): with `XᵀY = U S Vᵀ`, the map is `s U Vᵀ`, which keeps
/// angles where both widths are equal and has orthonormal rows or columns where they are not; `s`
/// is the best scale for it in the squared error.
///
/// Has no regularisation to choose and next to nothing to overfit. Loses to ridge wherever the
/// two spaces are more than a rotation apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Procrustes;

impl Procrustes {
    pub(super) const NAME: &str = "procrustes";
}

impl Mapping for Procrustes {
    fn id(&self) -> &'static str {
        Self::NAME
    }

    fn choose(&self, problem: &Problem<'_>, _moments: &Moments) -> Result<Vec<Choice>, AlignError> {
        Ok(problem.all_inputs(0.0))
    }

    fn solve(
        &self,
        problem: &Problem<'_>,
        moments: &Moments,
        choices: &[Choice],
    ) -> Result<Vec<Part>, AlignError> {
        debug_assert_eq!(choices.len(), problem.group.targets.len());
        let centred = moments.centred();
        let mut parts = Vec::new();
        for (columns, outputs) in problem.columns().into_iter().zip(&problem.group.targets) {
            let xty = centred.xty.subcols(columns.start, columns.len());
            let svd = xty.thin_svd().map_err(|_| AlignError::NotFinite {
                what: "products of source and target".to_owned(),
            })?;
            let rotation: Mat<f64> = svd.U() * svd.V().transpose();
            let spread = &centred.xtx * &rotation;
            let (mut aligned, mut length) = (0.0, 0.0);
            for j in 0..rotation.ncols() {
                for i in 0..rotation.nrows() {
                    aligned += rotation[(i, j)] * xty[(i, j)];
                    length += rotation[(i, j)] * spread[(i, j)];
                }
            }
            let scale = if length > 0.0 { aligned / length } else { 0.0 };
            let solution = Solution::Dense(rotation * faer::Scale(scale));
            let mean_y = &centred.mean_y[columns];
            parts.push(Part {
                inputs: problem.group.inputs.clone(),
                own: Vec::new(),
                outputs: outputs.clone(),
                affine: Affine::new(&solution, &centred.mean_x, mean_y, problem.storage)?,
            });
        }
        Ok(parts)
    }
}
