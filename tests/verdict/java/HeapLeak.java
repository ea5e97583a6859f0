// Remembers every session for ever. Start with -Xmx2g.
import java.util.ArrayList;
import java.util.List;

public class HeapLeak {
    static final List<Object[]> sessions = new ArrayList<>();

    static void login(int user) {
        Object[] session = new Object[200];
        for (int i = 0; i < session.length; i++) session[i] = "user " + user + " item " + i;
        sessions.add(session);
    }

    public static void main(String[] args) throws InterruptedException {
        System.out.println("ready");
        for (int user = 0; ; user++) {
            login(user);
            Thread.sleep(1);
        }
    }
}
