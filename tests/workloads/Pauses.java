// Waits in two methods whose frames look the same, three times as long in one as in the other. Prints "ready", and ends with its
// input.
public class Pauses {
    public static void main(String[] args) throws Exception {
        Thread worker = new Thread(Pauses::serve, "worker");
        worker.setDaemon(true);
        worker.start();
        Thread.sleep(500);
        System.out.println("ready");
        while (System.in.read() >= 0) {}
    }

    static void serve() {
        while (true) {
            longer(6);
            shorter(2);
        }
    }

    static void longer(int ms) {
        pause(ms);
    }

    static void shorter(int ms) {
        pause(ms);
    }

    static void pause(int ms) {
        try {
            Thread.sleep(ms);
        } catch (InterruptedException e) {
            throw new RuntimeException(e);
        }
    }
}
