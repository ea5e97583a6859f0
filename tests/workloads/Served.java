// Java whose shares of CPU time are known: serve > handle > workFifty, workThirty, workTwenty > spin, in chunks of random length.
// Prints "ready"; answers each line of its input with what it has done so far: the CPU time of each method, us, by its thread's
// clock, the turns of all loops, and all of the process's CPU time, us. Ends with its input.
import com.sun.management.OperatingSystemMXBean;
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.util.Random;

public class Served {
    static final ThreadMXBean THREADS = ManagementFactory.getThreadMXBean();
    static final OperatingSystemMXBean SYSTEM =
        (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
    static final String[] NAMES = {"Served.workFifty", "Served.workThirty", "Served.workTwenty"};
    static final double[] SHARES = {0.5, 0.3, 0.2};

    static final long[] used = new long[3];
    static volatile long turns;
    static volatile int sum;

    public static void main(String[] args) throws Exception {
        Thread worker = new Thread(() -> serve(new Random()), "worker");
        worker.setDaemon(true);
        worker.start();
        Thread.sleep(1500);
        System.out.println("ready");
        for (int c; (c = System.in.read()) >= 0; ) if (c == '\n') System.out.println(told());
    }

    static String told() {
        StringBuilder told = new StringBuilder("{\"used\":{");
        for (int i = 0; i < NAMES.length; i++) {
            told.append(i > 0 ? "," : "").append('"').append(NAMES[i]).append("\":").append(used[i] / 1e3);
        }
        return told + "},\"turns\":" + turns + ",\"cpu\":" + SYSTEM.getProcessCpuTime() / 1e3 + "}";
    }

    static void serve(Random random) {
        while (true) {
            double count = 2e5 + random.nextDouble() * 2e6;
            for (int which = 0; which < SHARES.length; which++) handle(which, (int) (count * SHARES[which]));
        }
    }

    static void handle(int which, int count) {
        long before = THREADS.getCurrentThreadCpuTime();
        sum += which == 0 ? workFifty(count) : which == 1 ? workThirty(count) : workTwenty(count);
        used[which] += THREADS.getCurrentThreadCpuTime() - before;
        turns += count;
    }

    static int workFifty(int count) {
        return spin(count) + 1;
    }

    static int workThirty(int count) {
        return spin(count) + 2;
    }

    static int workTwenty(int count) {
        return spin(count) + 3;
    }

    static int spin(int count) {
        int x = 1;
        for (int i = 0; i < count; i++) x = (x * 31 + i) % 65521;
        return x;
    }
}
