// Java whose shares of CPU time are known: 50, 30 and 20 %, in chunks of random length. Prints "ready", and ends with its input.
import java.util.Random;

public class Shares {
    static int sum;

    public static void main(String[] args) throws Exception {
        // Three classes behind one call: too many for the compiler to put them into their caller.
        Work[] works = {new Fifty(), new Thirty(), new Twenty()};
        double[] shares = {0.5, 0.3, 0.2};
        Thread worker = new Thread(() -> {
            Random random = new Random(7);
            while (true) {
                double count = 2e5 + random.nextDouble() * 2e6;
                for (int i = 0; i < works.length; i++) sum += works[i].run((int) (count * shares[i]));
            }
        }, "worker");
        worker.setDaemon(true);
        worker.start();
        Thread.sleep(1000);
        System.out.println("ready");
        while (System.in.read() >= 0) {}
    }
}

interface Work {
    int run(int count);
}

class Fifty implements Work {
    public int run(int count) {
        int x = 1;
        for (int i = 0; i < count; i++) x = (x * 31 + i) % 65521;
        return x;
    }
}

class Thirty implements Work {
    public int run(int count) {
        int x = 2;
        for (int i = 0; i < count; i++) x = (x * 31 + i) % 65521;
        return x;
    }
}

class Twenty implements Work {
    public int run(int count) {
        int x = 3;
        for (int i = 0; i < count; i++) x = (x * 31 + i) % 65521;
        return x;
    }
}
