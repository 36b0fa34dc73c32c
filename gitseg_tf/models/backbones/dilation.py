"""Atrous convolutions instead of the last strides."""

import tf_keras as keras


def dilated(encoder: keras.Model, output_stride: int) -> keras.Model:
    """An encoder whose features are no coarser than `output_stride`, by atrous convolutions (arXiv:1606.00915).

    A layer that would have gone beyond that stride has stride 1; behind it convolutions are dilated by what was left
    out, so that each weight meets the same places of the window as before and is pretrained for what it does here.

    Args:
        encoder: functional model of plain layers with static sizes, of which the output stride is a power of two.
        output_stride: of the coarsest feature.

    Returns:
        A new encoder with the same layers' names and weights' shapes. Its outputs are those of `encoder`.
    """
    height = encoder.input_shape[1]

    def copy(layer):
        settings = layer.get_config()
        if isinstance(layer, keras.layers.ZeroPadding2D) and height // layer.input_shape[1] >= output_stride:
            settings["padding"] = ((0, 0), (0, 0))  # of a strided convolution, which pads by itself below
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            surplus = height // layer.output_shape[1] // layer.strides[0] // output_stride
            if surplus >= 1:
                settings.update(strides=(1, 1), padding="same")
                if max(layer.kernel_size) > 1:
                    settings["dilation_rate"] = (surplus, surplus)
        return type(layer).from_config(settings)

    return keras.models.clone_model(encoder, clone_function=copy)
