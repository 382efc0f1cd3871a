"""The sound of one file carried into another, in step with the picture."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from sama.media import MediaError
from sama.video_frames import reason

COPIED = ("aac", "mp3", "ac3", "eac3", "alac", "opus")  # what players expect in an mp4; anything else becomes AAC
RATES = (48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)  # of AAC that players take
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}  # by channels: raw sound often says no more


class AudioTrack:
    """The first audio stream of an open container on its way into another, whose picture starts at time 0."""

    def __init__(self, out: Any, source: Any) -> None:
        self.source, self.out = source, out
        self.stream = source.streams.audio[0]
        context = self.stream.codec_context
        if context is None:
            raise MediaError("the sound is in a format that is not known here")
        self.as_is = context.codec.canonical_name in COPIED
        if self.as_is:
            self.target = out.add_stream_from_template(self.stream)
        else:
            rate = next((r for r in RATES if r <= context.sample_rate), RATES[-1])
            self.target = out.add_stream("aac", rate=rate, layout=LAYOUTS.get(context.channels, "stereo"))
        self._start = self._picture_start()

    def copy(self, seconds: float) -> None:
        """Write the sound of the picture's first `seconds`. MediaError when it does not decode."""
        import av

        try:
            if self.as_is:
                for packet in self._packets(seconds):
                    packet.stream = self.target
                    self.out.mux(packet)
                return
            at = None
            for packet in self._packets(seconds):
                for frame in packet.decode():
                    if at is None:  # from here on without gaps, as the encoder wants it
                        at = 0 if frame.time is None else round((frame.time - self._start) * frame.sample_rate)
                    frame.time_base, frame.pts, at = Fraction(1, frame.sample_rate), at, at + frame.samples
                    self.out.mux(self.target.encode(frame))
            self.out.mux(self.target.encode(None))
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(f"its sound cannot be taken along: {reason(error)}") from None

    def _picture_start(self) -> float:
        """When the picture starts on the source's clock, in seconds; the sound itself where there is no picture."""
        picture = self.source.streams.best("video") or self.stream
        return float((picture.start_time or 0) * (picture.time_base or 0))

    def _packets(self, seconds: float) -> Iterator[Any]:
        """Those within the picture, on its clock when copied; of what lies before it one, to warm a decoder up."""
        for packet in self.source.demux(self.stream):
            if packet.pts is None:
                continue
            time, length = (float(n * packet.time_base) for n in (packet.pts, packet.duration or 0))
            if time - self._start >= seconds:
                return
            if time - self._start + 2 * length <= 0:
                continue
            if self.as_is:
                shift = round(self._start / packet.time_base)
                packet.pts -= shift
                packet.dts = packet.pts
            yield packet
