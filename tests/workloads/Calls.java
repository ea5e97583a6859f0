// A known call tree: serve calls route, that parse and render, and parse calls scan. Work of random length: two thirds of it are
// scan's, a third is render's. Threads, if a number is given, all do the same. Prints "ready", and ends with its input.
import java.util.Random;

public class Calls {
    static volatile int sum;

    public static void main(String[] args) throws Exception {
        int threads = args.length > 0 ? Integer.parseInt(args[0]) : 1;
        for (int i = 0; i < threads; i++) {
            long seed = i;
            Thread worker = new Thread(() -> serve(new Random(seed)), "worker " + i);
            worker.setDaemon(true);
            worker.start();
        }
        Thread.sleep(1000);
        System.out.println("ready");
        while (System.in.read() >= 0) {}
    }

    static void serve(Random random) {
        while (true) sum += route(1000 + random.nextInt(20000));
    }

    static int route(int count) {
        return parse(count) + render(count);
    }

    static int parse(int count) {
        return scan(2 * count) + 1;
    }

    static int scan(int count) {
        int x = 1;
        for (int i = 0; i < count; i++) x = (x * 31 + i) % 65521;
        return x;
    }

    static int render(int count) {
        int x = 3;
        for (int i = 0; i < count; i++) x = (x * 31 + i) % 65521;
        return x;
    }
}
