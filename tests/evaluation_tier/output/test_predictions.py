import numpy as np
import pandas as pd

from evaluation_tier.output.predictions import write_predictions


def test_predictions_round_trip(tmp_path):
    predictions = pd.DataFrame(
        {"image_id": ["a", "b"], "patient_id": ["p", "q"], "score_Edema": [0.1, -0.2], "label_Edema": [1.0, np.nan]},
        index=[0, 5],
    )
    read = pd.read_parquet(write_predictions(tmp_path / "predictions.parquet", predictions))
    pd.testing.assert_frame_equal(read, predictions.reset_index(drop=True), check_dtype=False)
