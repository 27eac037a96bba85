"""An RTSP server of SDL pictures: rtsp_server.py PORT, then rtsp://127.0.0.1:PORT/sdl."""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer

Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    "( videotestsrc is-live=true ! video/x-raw,format=RGB,width=160,height=120,framerate=15/1"
    " ! sdlenc ! rtpgstpay name=pay0 config-interval=1 )"
)
factory.set_shared(True)
server.get_mount_points().add_factory("/sdl", factory)
server.attach(None)
GLib.MainLoop().run()
