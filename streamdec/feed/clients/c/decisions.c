/* Prints the header of each decision of a feed, one line of JSON each. The session needs `feed.encoding = "json"`.

       cc decisions.c -o decisions $(pkg-config --cflags --libs libzmq)
       ./decisions tcp://127.0.0.1:5650 | jq '.candidates[0].label'

   A subscriber that comes late misses what was published before it; how to ask for the last of each kind is told in
   publisher.py, and done in the Python and TypeScript clients. */
#include <stdio.h>
#include <zmq.h>

int main(int argc, char **argv)
{
    const char *endpoint = argc > 1 ? argv[1] : "tcp://127.0.0.1:5650";
    void *context = zmq_ctx_new();
    void *feed = zmq_socket(context, ZMQ_SUB);
    zmq_setsockopt(feed, ZMQ_SUBSCRIBE, "retrieval", 9);
    if (zmq_connect(feed, endpoint) != 0) {
        fprintf(stderr, "%s: %s\n", endpoint, zmq_strerror(zmq_errno()));
        return 2;
    }
    for (int part = 0;; part++) { /* of a message: the topic, the header, then payloads */
        zmq_msg_t frame;
        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, feed, 0) < 0)
            break;
        if (part == 1) {
            fwrite(zmq_msg_data(&frame), 1, zmq_msg_size(&frame), stdout);
            putchar('\n');
            fflush(stdout);
        }
        if (!zmq_msg_more(&frame))
            part = -1;
        zmq_msg_close(&frame);
    }
    zmq_close(feed);
    zmq_ctx_term(context);
    return 0;
}
