"""The files of code that a saved model or processor holds, written out, so that none is added or lost by mistake."""

CLIP_CODE = {
    "base_tier.py",
    "configuration_tier.py",
    "contrastive_loss_tier.py",
    "direct_maps_tier.py",
    "encoding_tier.py",
    "evidence_tier.py",
    "findings_tier.py",
    "global_batch_tier.py",
    "heat_map_tier.py",
    "local_features_tier.py",
    "losses_tier.py",
    "maps_tier.py",
    "modeling_tier.py",
    "patch_centers_tier.py",
    "pipeline_images_tier.py",
    "pipeline_tier.py",
    "pooling_tier.py",
    "saving_tier.py",
    "score_levels_tier.py",
    "sentence_settings_tier.py",
    "texts_tier.py",
    "tower_features_tier.py",
    "towers_tier.py",
}
DUAL_CODE = CLIP_CODE - {"modeling_tier.py", "direct_maps_tier.py"} | {
    "adapter_layers_tier.py",
    "modeling_dual_tier.py",
}
CLASSIFIER_CODE = DUAL_CODE | CLIP_CODE | {"modeling_classification_tier.py"}
PROCESSOR_CODE = {
    "codestreams_tier.py",
    "dicom_levels_tier.py",
    "dicom_tier.py",
    "grey_levels_tier.py",
    "image_files_tier.py",
    "image_processing_tier.py",
    "limits_tier.py",
    "processing_tier.py",
    "radiograph_tier.py",
    "tiff_tier.py",
}
