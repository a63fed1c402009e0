"""Which of ONNX Runtime's graph transformers run: two or three, and only where there are convolutions.

``ConvActivationFusion`` puts the activation behind a convolution into it, and ``NchwcTransformer`` gives
convolutions a layout in blocks of channels and joins them with the sum behind them, which takes a fifth off
a ResNet-50 and nearly half off a MobileNetV2. ``ConvBNFusion`` folds what our own rewrite leaves in models of
16 bits: there new weights would be rounded again, and here they are f32. In a model of f32 it is off: what
our own left there would overflow or vanish if merged (``compiler/overflow.py``). The others stay off: the
graph has been optimised before, and they would read constants that are not in the model.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Every other rule of the one transformer that is made of rules.
_RULES: tuple[str, ...] = (
    "CastChainElimination",
    "CastElimination",
    "ClipQuantRewrite",
    "ConvAddFusion",
    "ConvMulFusion",
    "DivMulFusion",
    "EliminateDropout",
    "EliminateIdentity",
    "EliminateSlice",
    "ExpandElimination",
    "FuseReluClip",
    "GemmSumFusion",
    "GemmTransposeFusion",
    "LabelEncoderFusion",
    "MatMul_BatchNormalization_Fusion",
    "NoopElimination",
    "NotWhereFusion",
    "Pad_Fusion",
    "PreShapeNodeElimination",
    "ReluQuantRewrite",
    "UnsqueezeElimination",
)

#: Every other transformer of onnxruntime's list; a test holds this against its log.
OTHERS: tuple[str, ...] = (
    *_RULES,
    "AttentionFusion",
    "BiasDropoutFusion",
    "BiasGeluFusion",
    "BiasSkipLayerNormFusion",
    "BiasSoftmaxFusion",
    "CommonSubexpressionElimination",
    "ConstantFolding",
    "ConstantSharing",
    "ConvAddActivationFusion",
    "DoubleQDQPairsRemover",
    "DynamicQuantizeMatMulFusion",
    "EmbedLayerNormFusion",
    "FastGeluFusion",
    "FreeDimensionOverrideTransformer",
    "FuseFp16InitializerToFp32NodeTransformer",
    "GatherSliceToSplitFusion",
    "GatherToSliceFusion",
    "GeluFusionL1",
    "GeluFusionL2",
    "GemmActivationFusion",
    "GroupQueryAttentionFusion",
    "GroupQueryAttentionPreNormFusion",
    "LayerNormFusionL1",
    "LayerNormFusionL2",
    "Level2_RuleBasedTransformer",
    "MatMulActivationFusion",
    "MatMulAddFusion",
    "MatMulIntegerToFloatFusion",
    "MatMulNBitsFusion",
    "MatMulScaleFusion",
    "MatmulTransposeFusion",
    "NhwcTransformer",
    "QDQFinalCleanupTransformer",
    "QDQPropagationTransformer",
    "QDQS8ToU8Transformer",
    "QDQSelectorActionTransformer",
    "QuickGeluFusion",
    "ReshapeFusion",
    "SimplifiedLayerNormFusion",
    "SkipLayerNormFusion",
    "SliceConcatToSpaceToDepthFusion",
    "SwiGluFusion",
    "TransposeOptimizer",
    "TransposeOptimizer_CPUExecutionProvider",
    "WeightBiasQuantization",
    "WhereDummyDq",
)

_NORMS = "ConvBNFusion"

#: ONNX ops whose constants the transformer reads.
READERS = frozenset({"Conv", "BatchNormalization"})


def left_off(*, has_halves: bool) -> list[str]:
    """The transformers that do not run; ``has_halves`` says that what they read was of 16 bits."""
    return [*OTHERS] if has_halves else [*OTHERS, _NORMS]


def constants_read(nodes: Iterable[tuple[str, tuple[str, ...]]]) -> tuple[str, ...]:
    """Of nodes given as op type and input names, the inputs whose values the transformer needs.

    Empty when there is no convolution, and so nothing for it to do.
    """
    found = [(op_type, names) for op_type, names in nodes if op_type in READERS]
    if not any(op_type == "Conv" for op_type, _ in found):
        return ()
    return tuple(dict.fromkeys(name for _, names in found for name in names if name))
