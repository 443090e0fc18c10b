import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.UUID;
import java.util.stream.Stream;

/**
 * Chats with java.net.http as it comes, which offers h2c: java Client.java [URL THREAD]... It reads to the end through
 * cuts, and prints a line "THREAD DATA" for each event.
 */
class Client {
    public static void main(String[] places) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        List<Thread> chats = new ArrayList<>();
        for (int at = 0; at < places.length; at += 2) {
            String url = places[at], thread = places[at + 1];
            Thread chat = new Thread(() -> chat(client, url, thread));
            chat.start();
            chats.add(chat);
        }
        for (Thread chat : chats) chat.join();
    }

    static void chat(HttpClient client, String url, String thread) {
        String key = UUID.randomUUID().toString(), seen = null;
        String body = "{\"message\": \"Draft an NDA\", \"thread_id\": \"" + thread + "\"}";
        for (boolean ended = false; !ended; ) {
            HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url + "/api/chat"))
                .header("Content-Type", "application/json")
                .header("Idempotency-Key", key)
                .POST(HttpRequest.BodyPublishers.ofString(body));
            if (seen != null) request.header("Last-Event-ID", seen);
            try (Stream<String> lines = client.send(request.build(), BodyHandlers.ofLines()).body()) {
                String id = null, data = null;
                for (Iterator<String> each = lines.iterator(); each.hasNext(); ) {
                    String line = each.next();
                    if (line.startsWith("id: ")) id = line.substring(4);
                    if (line.startsWith("data: ")) data = line.substring(6);
                    if (line.isEmpty() && data != null) {
                        synchronized (System.out) {
                            System.out.println(thread + " " + data);
                        }
                        seen = id;
                        ended = ended || data.startsWith("{\"type\":\"end\"") || data.startsWith("{\"type\":\"error\"");
                        data = null;
                    }
                    if (line.startsWith("{")) {  // a refusal
                        System.out.println(thread + " " + line);
                        return;
                    }
                }
            } catch (IOException | InterruptedException | java.io.UncheckedIOException broken) {
                // it goes on behind the last whole event
            }
        }
    }
}
